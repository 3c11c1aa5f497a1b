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
from concurrent.futures import ThreadPoolExecutor

log = logging.getLogger(__name__)

#: The control loop's own is 10.
MAX_PRIORITY = 9


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


def can_come_back() -> bool:
    """Whether a thread here may leave SCHED_IDLE again: not without RLIMIT_NICE (sched(7))."""

    def attempt() -> bool:
        usual = _scheduling(0)
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        try:
            os.sched_setscheduler(0, *usual)
        except PermissionError:
            return False
        return True

    with ThreadPoolExecutor(1) as thread:  # one that ends then
        return thread.submit(attempt).result()


def _scheduling(thread: int) -> tuple[int, os.sched_param]:
    return os.sched_getscheduler(thread), os.sched_getparam(thread)


class EngineClaim:
    """What an engine's threads claim: its priority while it serves, nothing at all in a run in spare time.

    Make it on the thread that serves, once the engine's own threads are there. Raises nothing: ``granted``
    says whether there is a priority. Where `can_come_back` says no, helping threads keep what they have.
    """

    def __init__(self, priority: int) -> None:
        self._serving = threading.get_native_id()
        self.granted = priority > 0 and claim(priority, threads_of_this_process())
        self._usual = _scheduling(0)
        self._can_come_back = can_come_back()
        self._idle = False
        self._lowered: list[int] = []

    def take(self, idle: bool) -> None:
        """Before a run: in an ``idle`` one, every thread but the serving one, which waits, is SCHED_IDLE."""
        if idle == self._idle or not self._can_come_back:
            return
        self._idle = idle
        if idle:
            others = [thread for thread in threads_of_this_process() if thread != self._serving]
            self._lowered = [
                thread for thread in others if _schedule(thread, os.SCHED_IDLE, os.sched_param(0))
            ]
            return
        for thread in self._lowered:
            _schedule(thread, *self._usual)


def _schedule(thread: int, policy: int, param: os.sched_param) -> bool:
    """Set it; False when the thread has that policy already, or has ended."""
    try:
        if os.sched_getscheduler(thread) == policy:
            return False
        os.sched_setscheduler(thread, policy, param)
    except ProcessLookupError:
        return False
    return True
