"""Did the machine itself stand still? A process at the highest real-time priority on each processor tells.

A virtual machine can be stopped by its host for half a second, all of it at once or one processor: then
no robot is punctual, and a test that failed meanwhile says nothing. Such a test is repeated, and said to
be. Where real-time priority is refused nothing can be told apart from load, and nothing is repeated.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

#: Three bus cycles without a reply are a fault, and a simulated motor that misses as many looks blocked.
WORST_S = 0.01
ATTEMPTS = 3
_QUIET_S = 3.0
_BURST_S = 20.0

_PROBE = """
import os, sys, time
cpu, limit, out = int(sys.argv[1]), float(sys.argv[2]), open(sys.argv[3], "a", buffering=1)
os.sched_setaffinity(0, {cpu})
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(98))
parent, last = os.getppid(), time.monotonic()
while os.getppid() == parent:
    time.sleep(0.005)
    now = time.monotonic()
    if now - last > limit:
        out.write(f"{now} {now - last}\\n")
    last = now
"""


class Standstill:
    """The probes, from the start of the session to its end."""

    def __init__(self, folder: Path) -> None:
        self._files: list[Path] = []
        self._probes: list[subprocess.Popen[bytes]] = []
        self.repeated: list[str] = []
        for cpu in sorted(os.sched_getaffinity(0)) if _granted() else []:
            file = folder / f"standstill-{cpu}"
            arguments = [sys.executable, "-c", _PROBE, str(cpu), str(WORST_S), str(file)]
            self._probes.append(subprocess.Popen(arguments, stderr=subprocess.DEVNULL))
            self._files.append(file)

    def worst_since(self, began: float) -> float:
        """The longest standstill that ended after ``began`` (monotonic s), s; 0 when there was none."""
        time.sleep(0.02)  # the one that is just ending
        worst = 0.0
        for file in self._files:
            for line in file.read_text().splitlines() if file.exists() else []:
                end, seconds = map(float, line.split())
                if end >= began:
                    worst = max(worst, seconds)
        return worst

    def wait_for_quiet(self) -> None:
        """Such moments come in bursts: return when none has come for a while, or too many have."""
        deadline = time.monotonic() + _BURST_S
        while self.worst_since(time.monotonic() - _QUIET_S) > 0.0 and time.monotonic() < deadline:
            time.sleep(0.1)

    def close(self) -> None:
        """End the probes."""
        for probe in self._probes:
            probe.kill()
            probe.wait()


def _granted() -> bool:
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(98))
    except OSError:
        return False
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return True
