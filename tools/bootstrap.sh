#!/usr/bin/env bash
# Set up everything Ratchet needs on this machine: system libraries, .venv, pinned packages.
# Safe to run again: each step is skipped when its result is already there.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

find_python() {
  for candidate in python3.11 python3 python3.12 python3.13; do
    if command -v "$candidate" >/dev/null 2>&1 &&
       "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"; return
    fi
  done
  fail "no Python 3.11 or newer with the venv module found; install it (Debian, Ubuntu: apt install python3 python3-venv) and run make again"
}

have_library() {
  local known
  known=$(PATH="$PATH:/sbin:/usr/sbin" ldconfig -p)
  [[ $known == *"$1"* ]]
}
have_mosquitto() { command -v mosquitto >/dev/null 2>&1 || [ -x /usr/sbin/mosquitto ]; }

system_packages() {
  local missing=()
  have_library libEGL.so.1 || missing+=(libegl1)
  have_library libOSMesa.so || missing+=(libosmesa6)
  have_library libGL.so.1 || missing+=(libgl1)
  have_library libusb-1.0.so.0 || missing+=(libusb-1.0-0)
  have_mosquitto || missing+=(mosquitto)
  [ ${#missing[@]} -eq 0 ] && return
  local as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    if command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then as_root=(sudo -n)
    else fail "missing system packages: ${missing[*]}; install them (Debian, Ubuntu: sudo apt-get install ${missing[*]}) and run make again"; fi
  fi
  command -v apt-get >/dev/null 2>&1 || fail "missing system packages: ${missing[*]} (Debian names); install them with this system's package manager and run make again"
  say "installing system packages: ${missing[*]}"
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

optional_programs() {
  command -v strace >/dev/null 2>&1 || say "optional: strace, for one row of the fault table (apt-get install strace)"
  command -v sshd >/dev/null 2>&1 || [ -x /usr/sbin/sshd ] || say "optional: sshd, for one test of copying to another machine (apt-get install openssh-server)"
  command -v cc >/dev/null 2>&1 || say "optional: a C compiler, for two rows of the fault table (apt-get install gcc libc6-dev)"
}

python_packages() {
  local stamp=.venv/.ratchet-setup want
  want=$(cat pyproject.toml constraints.txt "$0" | sha256sum | cut -d' ' -f1)
  [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ] && [ -x .venv/bin/ratchet ] && return
  if [ ! -x .venv/bin/python ]; then
    say "creating .venv"
    "$(find_python)" -m venv .venv
  fi
  say "installing the pinned packages into .venv (a few minutes the first time)"
  # torch first and alone: pinned, so that a machine with a CPU build at hand takes that one.
  .venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt 'torch==2.13.0' setuptools wheel
  .venv/bin/pip install --quiet --disable-pip-version-check --no-build-isolation -c constraints.txt -e '.[dev]'
  printf '%s\n' "$want" > "$stamp"
}

system_packages
optional_programs
python_packages
say "ready: .venv/bin/ratchet"
