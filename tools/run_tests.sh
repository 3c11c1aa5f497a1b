#!/usr/bin/env bash
# The whole suite in two parts. First what computes, at idle priority behind drivers, runtime and commands;
# then, with the machine to itself, whole robots. With arguments it is plain pytest with those.
set -uo pipefail
cd "$(dirname "$0")/.."
PY="${PY:-.venv/bin/python}"

if [ $# -gt 0 ]; then
  exec "$PY" -m pytest "$@"
fi

computing=(tests/episodes tests/policies tests/policy_server tests/learner)
tolerant=(tests/hal tests/runtime tests/tools/commands tests/test_*.py)
punctual=(tests/faults tests/tools)

log="$(mktemp)"
idle=()
if chrt --idle 0 true 2>/dev/null; then
  idle=(chrt --idle 0)
fi
"${idle[@]}" "$PY" -m pytest "${computing[@]}" >"$log" 2>&1 &
behind=$!
trap 'kill "$behind" 2>/dev/null; rm -f "$log"' EXIT

echo "drivers, runtime and commands (behind them: ${computing[*]})"
"$PY" -m pytest "${tolerant[@]}"
front=$?
echo "what only computes"
wait "$behind"
back=$?
cat "$log"
echo "whole robots"
"$PY" -m pytest "${punctual[@]}" --ignore=tests/tools/commands
last=$?
[ "$front" -eq 0 ] && [ "$back" -eq 0 ] && [ "$last" -eq 0 ]
