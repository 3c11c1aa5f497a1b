"""Keeping time: absolute monotonic deadlines, what was missed is skipped, every overrun is counted.

uvloop's timers are whole milliseconds and may fire early, so nothing is paced with ``call_later``:
threads sleep with ``clock_nanosleep`` to an absolute deadline, the event loop waits on an absolute
``timerfd`` until shortly before the deadline and then sleeps the rest holding the interpreter.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import os
import sys
import threading
import time
from collections import Counter
from typing import NamedTuple

from runtime.streams import NS

_CLOCK_MONOTONIC = 1
_TIMER_ABSTIME = 1
_TFD_TIMER_ABSTIME = 1
_TFD_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("it_interval", _Timespec), ("it_value", _Timespec))


_libc = ctypes.CDLL(None, use_errno=True)
_libc_keeping_gil = ctypes.PyDLL(None)

LEAD_NS = 2_000_000  # of a period: what other callbacks and threads may take at its end
LATE_NS = 1_000_000  # a tick later than this has its cause named
_SHORT_TURN_S = 0.0005  # how long another thread may keep the interpreter while a tick waits for it
_LONG_TURN_S = 0.1  # how long the tick may


class SchedStat:
    """What the kernel did with the calling thread: time it ran and time it stood in the queue, ns."""

    def __init__(self) -> None:
        self._file = -1
        with contextlib.suppress(OSError):  # a kernel without scheduler statistics
            path = f"/proc/self/task/{threading.get_native_id()}/schedstat"
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self) -> tuple[int, int]:
        """(run, queued) since the thread began; zeros where the kernel does not tell."""
        if self._file < 0:
            return 0, 0
        run, queued, _ = os.pread(self._file, 80, 0).split()
        return int(run), int(queued)

    def close(self) -> None:
        """Give the file back; safe to call twice."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def sleep_until_ns(deadline_ns: int, *, keep_gil: bool = False) -> None:
    """Sleep to an absolute CLOCK_MONOTONIC time; returns at once when it has passed. Never early.

    With ``keep_gil`` no other Python thread runs meanwhile, so none can hold the waker up.
    """
    at = _Timespec(deadline_ns // NS, deadline_ns % NS)
    libc = _libc_keeping_gil if keep_gil else _libc
    while True:
        code = libc.clock_nanosleep(_CLOCK_MONOTONIC, _TIMER_ABSTIME, ctypes.byref(at), None)
        if code != errno.EINTR:
            break
    if code:
        raise OSError(code, os.strerror(code))


class Wake(NamedTuple):
    """One period's start: the deadline it was due at, how late it is, how many periods were skipped."""

    deadline_ns: int
    late_ns: int
    skipped: int


class Pacer:
    """Periods of ``period_ns`` on a fixed grid. A period that was missed is skipped, never made up for.

    Call ``stage`` as the work of a period passes from one part to the next: when the period is
    overrun, the part that took longest is named as the cause (``wakeup`` when the work itself was in
    time and the scheduler was late).
    """

    def __init__(self, period_ns: int, start_ns: int | None = None) -> None:
        if period_ns <= 0:
            raise ValueError(f"a period of {period_ns} ns is not a period")
        self.period_ns = period_ns
        self.next_ns = time.monotonic_ns() if start_ns is None else start_ns
        self.overruns: Counter[str] = Counter()
        self.skipped = 0
        self._stage, self._stage_ns = "wakeup", self.next_ns
        self._longest: tuple[int, str] = (0, "wakeup")
        self._missed = 0

    def stage(self, name: str) -> None:
        """The work of this period passes on to its part ``name``."""
        self._close_stage(time.monotonic_ns())
        self._stage = name

    def wait(self) -> Wake:
        """Sleep to the next deadline (blocking)."""
        self.end_work(time.monotonic_ns())
        sleep_until_ns(self.next_ns)
        return self.woken(time.monotonic_ns())

    def end_work(self, now_ns: int) -> None:
        """The work of the period is done: count an overrun, move on to the next deadline that counts.

        A period may still begin up to a quarter of its length late; after that it is skipped, since
        two periods in quick succession are worse for the arm than one that is missing.
        """
        self._close_stage(now_ns)
        late_ns = now_ns - self.next_ns
        self._missed = 0
        if late_ns > 0:
            self.overruns[self._longest[1]] += 1
            self._missed = max(0, -(-(late_ns - self.period_ns // 4) // self.period_ns))
            self.skipped += self._missed
            self.next_ns += self._missed * self.period_ns

    def woken(self, now_ns: int) -> Wake:
        """The deadline passed; the next period begins."""
        deadline_ns, late_ns = self.next_ns, now_ns - self.next_ns
        behind = max(0, late_ns // self.period_ns)
        if behind:
            self.overruns["wakeup"] += 1
            self.skipped += behind
            deadline_ns += behind * self.period_ns
        self.next_ns = deadline_ns + self.period_ns
        self._stage, self._stage_ns, self._longest = "wakeup", now_ns, (0, "wakeup")
        return Wake(deadline_ns, now_ns - deadline_ns, self._missed + behind)

    def _close_stage(self, now_ns: int) -> None:
        spent = now_ns - self._stage_ns
        if spent > self._longest[0]:
            self._longest = (spent, self._stage)
        self._stage_ns = now_ns


class TimerFd:
    """An absolute monotonic timer for an event loop, exact to the kernel's timers. Use as a context."""

    def __init__(self) -> None:
        self._fd = _libc.timerfd_create(_CLOCK_MONOTONIC, _TFD_FLAGS)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def __enter__(self) -> TimerFd:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def sleep_until_ns(self, deadline_ns: int) -> None:
        """Wait to an absolute CLOCK_MONOTONIC time. One waiter at a time; may be cancelled."""
        if deadline_ns <= time.monotonic_ns():
            await asyncio.sleep(0)
            return
        spec = _Itimerspec(_Timespec(0, 0), _Timespec(deadline_ns // NS, deadline_ns % NS))
        if _libc.timerfd_settime(self._fd, _TFD_TIMER_ABSTIME, ctypes.byref(spec), None) < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        loop = asyncio.get_running_loop()
        fired: asyncio.Future[None] = loop.create_future()
        loop.add_reader(self._fd, _expire, self._fd, fired)
        try:
            await fired
        finally:
            loop.remove_reader(self._fd)

    def close(self) -> None:
        """Give the descriptor back; safe to call twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _expire(descriptor: int, fired: asyncio.Future[None]) -> None:
    """The timer's reader: take its count so that it does not fire again, then wake the waiter."""
    try:
        os.read(descriptor, 8)
    except BlockingIOError:
        return
    if not fired.done():
        fired.set_result(None)


class TickTimer:
    """A ``Pacer`` for an event loop: ``wake = await timer.next()``. Use as a context.

    The loop is asked to come back ``lead_ns`` before the deadline; the rest is slept to the deadline in
    the kernel, holding the interpreter. What other callbacks and threads do shortly before a tick is
    absorbed by the lead, and at the deadline only the kernel stands between the timer and the tick.
    No spinning. After ``next``, ``cause`` says why a tick was later than 1 ms: ``work`` (the last
    tick's own), ``queue`` (the thread could run, the scheduler had it wait), ``callback`` (the event
    loop was busy), ``interpreter`` (another thread had it), ``kernel`` (woken late); or "".
    """

    def __init__(self, period_ns: int, lead_ns: int = LEAD_NS) -> None:
        self.pacer = Pacer(period_ns)
        self.cause = ""
        self._lead_ns = min(lead_ns, period_ns // 4)
        self._timer = TimerFd()
        self._sched = SchedStat()
        self._turn_s = sys.getswitchinterval()

    def __enter__(self) -> TickTimer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def stage(self, name: str) -> None:
        """See ``Pacer.stage``."""
        self.pacer.stage(name)

    async def next(self) -> Wake:
        """Wait for the next tick. Until it is called again, no other thread interrupts the caller."""
        pacer = self.pacer
        done_ns = time.monotonic_ns()
        overran = done_ns > pacer.next_ns
        pacer.end_work(done_ns)
        run_ns, queued_ns = self._sched.read()
        due_ns = pacer.next_ns
        sys.setswitchinterval(_SHORT_TURN_S)
        await self._timer.sleep_until_ns(due_ns - self._lead_ns)
        sys.setswitchinterval(_LONG_TURN_S)
        back_ns = time.monotonic_ns()
        sleep_until_ns(due_ns, keep_gil=True)
        wake = pacer.woken(time.monotonic_ns())
        self.cause = ""
        if wake.late_ns > LATE_NS or wake.skipped:
            run, queued = self._sched.read()
            delay_ns = max(back_ns - due_ns + self._lead_ns, wake.late_ns)
            self.cause = _cause(overran, back_ns > due_ns, delay_ns, run - run_ns, queued - queued_ns)
        return wake

    def close(self) -> None:
        """Give the timer back; safe to call twice."""
        sys.setswitchinterval(self._turn_s)
        self._timer.close()
        self._sched.close()


def _cause(overran: bool, back_late: bool, delay_ns: int, run_ns: int, queued_ns: int) -> str:
    """Why a tick that was ``delay_ns`` late came late: what its thread did since the last one."""
    if overran:
        return "work"
    if queued_ns > delay_ns // 2:
        return "queue"
    if not back_late:
        return "kernel"
    return "callback" if run_ns > delay_ns // 2 else "interpreter"
