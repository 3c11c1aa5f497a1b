"""Is this machine fit for a robot: time, disk, clock, drawing, the fleet's broker."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tools.checking import Finding, ok, problem, warning
from tools.time_checks import time_findings

_MIN_FREE_GB = 5.0
_TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised
_TIMEX_BYTES = 512  # more than the kernel's struct timex
_DRAW = (
    "from hal.bench.world import World, WorldConfig\n"
    "world = World(WorldConfig(width=32, height=32))\nworld.reset(0)\nworld.render('front')\n"
)
_BROKER_PLACES = "/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin"


def machine_findings(store: Path, draw: bool = True) -> Iterator[Finding]:
    """Everything about the machine. ``store`` is where episodes go; ``draw`` tries the bench's pictures."""
    yield from time_findings()
    yield _disk(store)
    yield _clock()
    yield _broker()
    yield _engines()
    if draw:
        yield _drawing()


def _disk(store: Path) -> Finding:
    place = store
    while not place.exists() and place != place.parent:
        place = place.parent
    if not os.access(place, os.W_OK):
        return problem("disk", f"{place} may not be written", f"chown it, or set [store] path (now {store})")
    free = shutil.disk_usage(place).free / 1e9
    if free < _MIN_FREE_GB:
        return warning("disk", f"{free:.1f} GB free at {place}", "free some, or move [store] path")
    return ok("disk", f"{free:.0f} GB free at {place}")


def _clock() -> Finding:
    libc = ctypes.CDLL(None, use_errno=True)
    state = libc.adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    if state < 0:
        return warning("clock", "its state cannot be read", "see `timedatectl`")
    if state == _TIME_ERROR:
        return warning(
            "clock",
            "it is not synchronised: fleet commands may be refused as expired, episodes get odd dates",
            "sudo timedatectl set-ntp true",
        )
    return ok("clock", "synchronised")


def _broker() -> Finding:
    found = shutil.which("mosquitto") or shutil.which("mosquitto", path=_BROKER_PLACES)
    if found is None:
        return warning(
            "MQTT broker", "no mosquitto here: only a fleet needs one", "sudo apt-get install mosquitto"
        )
    return ok("MQTT broker", found)


def _engines() -> Finding:
    """What policies run on here. That a GPU's engine is missing is no fault, only named."""
    from policies.engine import providers, skipped

    used = "; ".join(f"{form} on {', '.join(n for n, _ in providers(form))}" for form in ("fp32", "int8"))
    return ok("inference", f"{used}; skipped: {', '.join(skipped()) or 'none'}")


def _drawing() -> Finding:
    """In a process of its own: a broken driver takes down whoever asks it to draw."""
    try:
        done = subprocess.run([sys.executable, "-c", _DRAW], capture_output=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return warning("offscreen drawing", "one picture took more than a minute", "install libosmesa6")
    if done.returncode == 0:
        return ok("offscreen drawing", "the bench can draw its cameras' pictures")
    lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {done.returncode}"]
    return warning(
        "offscreen drawing", lines[-1], "sudo apt-get install libosmesa6 libegl1 (the bench needs it)"
    )
