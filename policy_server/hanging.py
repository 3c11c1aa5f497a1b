"""Whether an engine process that has not answered yet hangs, or is only slow on a busy machine.

Time alone does not tell: where ten others want the same core, a run takes ten times as long. So the
kernel is asked. A process that neither computes nor wants to hangs; one that has computed many times
what such a run costs goes round in circles; one that waits for the processor is given time.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

#: Whatever answers within this time is not looked at.
FIRST_LOOK_S = 0.25
#: From one look to the next.
LOOK_S = 0.1
#: At the very latest.
LIMIT_S = 10.0
_STILL_LOOKS = 5  # without a sign of life; looks, not seconds: this process may be the one held up
_SOON_S = 0.5
_SLOWER = 4.0  # than expected, before standing still means anything: a GPU may be at work
_CIRCLES = 20.0  # times the computing that a run is expected to take
_CIRCLES_S = 1.5
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_WANTS = ("R", "D")  # running or runnable; waiting for a disk (proc_pid_stat(5))


@dataclass(frozen=True, slots=True)
class Seen:
    """Of a process at one time: processor time so far, s; whether a thread of it wants the processor."""

    cpu_s: float
    wants: bool


def look_at(pid: int) -> Seen:
    """What the kernel says of all threads of a process; one that is gone wants nothing."""
    ticks, wants = 0, False
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            fields = Path(f"/proc/{pid}/task/{task}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
            wants = wants or fields[0] in _WANTS
    except (FileNotFoundError, ProcessLookupError):
        pass  # a thread, or the process, ended meanwhile
    return Seen(ticks / _TICKS_PER_S, wants)


class Patience:
    """With an engine whose answer is expected in ``expected_s`` on ``threads`` threads, and is not there.

    Ask for `reason` about every `LOOK_S`, with the seconds since the request was sent.
    """

    def __init__(self, look: Callable[[], Seen], expected_s: float, threads: int) -> None:
        self._look = look
        self._soon_s = max(_SOON_S, _SLOWER * expected_s)
        self._circles_s = threads * max(_CIRCLES_S, _CIRCLES * expected_s)
        self._first = self._last = look()
        self._still = 0

    def reason(self, waited_s: float) -> str | None:
        """Why it would be in vain to wait on; None while it may not be."""
        seen = self._look()
        moved = seen.wants or seen.cpu_s > self._last.cpu_s
        self._still = 0 if moved else self._still + 1
        self._last = seen
        if waited_s >= LIMIT_S:
            return f"did not answer within {LIMIT_S:.0f} s"
        if waited_s >= self._soon_s and self._still >= _STILL_LOOKS:
            return f"has not answered for {waited_s:.1f} s and stands still"
        computed_s = seen.cpu_s - self._first.cpu_s
        if computed_s >= self._circles_s:
            return f"has computed for {computed_s:.1f} s without an answer"
        return None
