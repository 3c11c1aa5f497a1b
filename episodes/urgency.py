"""What an encoder does to the scheduler is undone.

SVT-AV1, opened by root, gives its own threads and the one that opens it the highest real-time priority there
is (SCHED_FIFO 99): whatever that process does from then on, and whatever it starts, goes before everything
else on the machine, a moving arm's bus process included.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

_Urgency = tuple[int, int]


def urgency(thread: int = 0) -> _Urgency:
    """(policy, real-time priority) of a thread of this process; 0 is the calling one."""
    return os.sched_getscheduler(thread), os.sched_getparam(thread).sched_priority


@contextlib.contextmanager
def urgency_kept() -> Iterator[None]:
    """Afterwards every thread is as urgent as it was before, a new one as the calling thread."""
    ours, before = urgency(), _threads()
    try:
        yield
    finally:
        for thread, now in _threads().items():
            policy, priority = before.get(thread, ours)
            if now != (policy, priority):
                with contextlib.suppress(ProcessLookupError):  # it has just ended
                    os.sched_setscheduler(thread, policy, os.sched_param(priority))


def _threads() -> dict[int, _Urgency]:
    found = {}
    for thread in map(int, os.listdir("/proc/self/task")):
        with contextlib.suppress(ProcessLookupError):
            found[thread] = urgency(thread)
    return found
