"""What no program on this machine can do better: ``python -m tools.bench.floor CPU``.

A thread that does nothing, at a priority above everything, pinned to one processor: when it comes late,
nothing could run there, be it for the kernel or for the host of a virtual machine. Runs until SIGTERM
or its parent's end, then prints its figures and its stalls as one JSON object.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from runtime.timing import sleep_until_ns
from tools.bench.common import quantile

PRIORITY = 90
PERIOD_NS = 5_000_000
STALL_NS = 1_000_000

Stall = tuple[int, int]
"""When it should have woken and when it did, monotonic ns."""


def watch(ended: Callable[[], bool]) -> tuple[list[float], list[Stall]]:
    """Sleep to one deadline after the other until ``ended``: lateness ms, and what was later than 1 ms."""
    late: list[float] = []
    stalls: list[Stall] = []
    due_ns = time.monotonic_ns()
    while not ended():
        due_ns += PERIOD_NS
        sleep_until_ns(due_ns)
        now_ns = time.monotonic_ns()
        late.append((now_ns - due_ns) / 1e6)
        if now_ns - due_ns > STALL_NS:
            stalls.append((due_ns, now_ns))
            due_ns = max(due_ns, now_ns - PERIOD_NS)
    return late, stalls


def figures(late: Sequence[float], stalls: Sequence[Stall], granted: bool) -> dict[str, Any]:
    """What is printed."""
    return {
        "granted": granted,
        "lateness_ms_p50": quantile(late, 50),
        "lateness_ms_p99": quantile(late, 99),
        "lateness_ms_p999": quantile(late, 99.9),
        "lateness_ms_max": round(max(late, default=0.0), 4),
        "stalls": list(stalls),
    }


def main(cpu: int) -> None:
    """Watch one processor."""
    ended: list[int] = []
    parent = os.getppid()
    signal.signal(signal.SIGTERM, lambda number, _: ended.append(number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.disable()
    os.sched_setaffinity(0, {cpu})
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
        granted = True
    except PermissionError:
        granted = False
    late, stalls = watch(lambda: bool(ended) or os.getppid() != parent)
    sys.stdout.write(json.dumps(figures(late, stalls, granted)) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]))
