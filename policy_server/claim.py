"""What threads may claim of the processor: a real-time priority where the configuration asks for one.

For a policy that is asked in every tick of a robot that leaves it hardly more processor than it
needs. Below the control loop and the buses (10 and 20), so they never wait for it; above
everything else, which therefore does (sched(7), SCHED_FIFO).
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterable

log = logging.getLogger(__name__)

#: The control loop's own is 10.
MAX_PRIORITY = 9
_SPARE_NICE = 19


def claim(priority: int, threads: Iterable[int]) -> bool:
    """Give threads of this process a real-time priority; False where the system refuses it."""
    try:
        for thread in threads:
            with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
                os.sched_setscheduler(thread, os.SCHED_FIFO, os.sched_param(priority))
    except PermissionError:
        return False
    return True


def ordinary(threads: Iterable[int] = (0,)) -> None:
    """Take it back; by default from the calling thread, so that what that starts begins without."""
    for thread in threads:
        with contextlib.suppress(ProcessLookupError):
            os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))


def threads_of_this_process() -> list[int]:
    """All there are now."""
    return [int(thread) for thread in os.listdir("/proc/self/task")]


def claim_all(priority: int) -> None:
    """For a server whose threads are there; those made later inherit it. A refusal is logged."""
    if priority and not claim(priority, threads_of_this_process()):
        log.warning("claim.refused priority=%d; LimitRTPRIO in the unit grants it", priority)


class EngineClaim:
    """The priority of an engine's threads: all of them while it serves, none while it helps out when idle.

    Make it on the thread that serves, once the engine's own threads are there. Raises nothing: ``granted``
    says whether there is a priority.
    """

    def __init__(self, priority: int) -> None:
        self._priority = priority
        serving = threading.get_native_id()
        self._helpers = [thread for thread in threads_of_this_process() if thread != serving]
        self._idle = False
        self.granted = priority > 0 and claim(priority, [serving, *self._helpers])

    def take(self, idle: bool) -> None:
        """Before a run: the engine's threads come last in an ``idle`` one, and first in any other."""
        if not self.granted or idle == self._idle:
            return
        self._idle = idle
        if not idle:
            claim(self._priority, self._helpers)
            return
        ordinary(self._helpers)
        for thread in self._helpers:
            with contextlib.suppress(ProcessLookupError):
                os.setpriority(os.PRIO_PROCESS, thread, _SPARE_NICE)
