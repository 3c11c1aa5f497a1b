#!/usr/bin/env bash
# The whole suite: what needs punctual processes in front, what only computes behind it at idle priority.
# With arguments it is plain pytest with those.
set -uo pipefail
cd "$(dirname "$0")/.."
PY="${PY:-.venv/bin/python}"

if [ $# -gt 0 ]; then
  exec "$PY" -m pytest "$@"
fi

computing=(tests/episodes tests/policies tests/policy_server tests/learner)
log="$(mktemp)"
idle=()
if chrt --idle 0 true 2>/dev/null; then
  idle=(chrt --idle 0)
fi
"${idle[@]}" "$PY" -m pytest "${computing[@]}" >"$log" 2>&1 &
behind=$!
trap 'kill "$behind" 2>/dev/null; rm -f "$log"' EXIT

echo "tests that need punctual processes (the others run behind them: ${computing[*]})"
"$PY" -m pytest "${computing[@]/#/--ignore=}"
front=$?
echo "tests that only compute"
wait "$behind"
back=$?
cat "$log"
[ "$front" -eq 0 ] && [ "$back" -eq 0 ]
