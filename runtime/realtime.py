"""Making a process as punctual as the machine permits, and saying honestly what was refused."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
import signal
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

_MCL_CURRENT_AND_FUTURE = 1 | 2
_MCL_ONFAULT = 4
_PR_SET_PDEATHSIG = 1
_YOUNG = 5_000  # objects: as many as a few ticks leave behind
_YOUNG_NS = 3_000_000


class RealtimeConfig(BaseModel):
    """What to ask the kernel for.

    ``priority`` is SCHED_FIFO's, 0 keeps the ordinary scheduler; it is the calling thread's alone, and
    what that starts begins with the ordinary scheduler. ``nice`` is for the process's other threads: one
    that is put aside while it holds the interpreter keeps the first one waiting. ``cpus`` empty means any.
    ``lock_memory`` keeps pages in memory; ``prefault`` also brings in those not touched yet, which is
    too much for a process with many threads.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    priority: int = Field(0, ge=0, le=90)
    nice: int = Field(0, ge=-20, le=0)
    cpus: tuple[int, ...] = ()
    lock_memory: bool = False
    prefault: bool = True


@dataclass(frozen=True, slots=True)
class Measure:
    """One thing that was asked for: whether it was granted, and if not, why and what would grant it."""

    name: str
    granted: bool
    detail: str


@dataclass(frozen=True, slots=True)
class RealtimeReport:
    """What a process got of what it asked for."""

    measures: tuple[Measure, ...]

    @property
    def refused(self) -> tuple[Measure, ...]:
        return tuple(measure for measure in self.measures if not measure.granted)

    def line(self) -> str:
        """One line for the log."""
        return "; ".join(
            f"{m.name}: {m.detail if m.granted else f'refused ({m.detail})'}" for m in self.measures
        )


def make_realtime(config: RealtimeConfig) -> RealtimeReport:
    """Freeze the collector, then whatever ``config`` asks. Refusals are reported, never raised.

    Call it last, on the thread that keeps time: threads that run already stay as they were.
    """
    measures = [_freeze_collector()]
    if config.cpus:
        measures.append(_pin(config.cpus))
    if config.lock_memory:
        measures.append(_lock_memory(config.prefault))
    if config.nice:
        measures.append(_favour(config.nice))
    if config.priority:
        measures.append(_fifo(config.priority))
    return RealtimeReport(tuple(measures))


def _freeze_collector() -> Measure:
    """What lives now lives on: no collection ever walks it, none starts by itself."""
    gc.collect()
    gc.freeze()
    gc.disable()
    return Measure("collector", True, f"frozen, {gc.get_freeze_count()} objects")


class IdleCollector:
    """Cyclic garbage is collected between ticks, never because an allocation happens to trigger it.

    For a process that makes garbage for months, after ``make_realtime`` has stopped the collector. A
    young collection costs microseconds; a full one runs once a minute, and only where twice the time
    the last one took is left. When it would never fit, what lives is frozen, which makes it short again.
    """

    def __init__(self, every_ns: int = 60_000_000_000) -> None:
        self._every_ns = every_ns
        self._full_ns = time.monotonic_ns()
        self._took_ns = 0

    def between(self, now_ns: int, deadline_ns: int) -> int:
        """A tick is over at ``now_ns``, the next due at ``deadline_ns``; ns that a full collection took."""
        room_ns = (deadline_ns - now_ns) // 2
        if now_ns - self._full_ns < self._every_ns:
            if gc.get_count()[0] > _YOUNG and room_ns > _YOUNG_NS:
                gc.collect(1)
            return 0
        if self._took_ns > room_ns:
            if now_ns - self._full_ns < 2 * self._every_ns:
                return 0  # a longer pause may come
            gc.freeze()
        gc.collect()
        self._full_ns = time.monotonic_ns()
        self._took_ns = self._full_ns - now_ns
        return self._took_ns


def _pin(cpus: Iterable[int]) -> Measure:
    wanted = sorted(set(cpus))
    try:
        os.sched_setaffinity(0, wanted)
    except OSError as error:
        return Measure(
            "affinity", False, f"cpus {wanted}: {error.strerror}; this machine has {os.cpu_count()}"
        )
    return Measure("affinity", True, f"cpus {wanted}")


def _lock_memory(prefault: bool) -> Measure:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft != resource.RLIM_INFINITY and os.geteuid() != 0:
        # It might be granted now, and an allocation fail later because of it.
        why = f"only {soft >> 20} MiB may be locked"
        return Measure("memory", False, f"{why}; LimitMEMLOCK=infinity in the unit grants it")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlockall(_MCL_CURRENT_AND_FUTURE | (0 if prefault else _MCL_ONFAULT)):
        why = os.strerror(ctypes.get_errno())
        return Measure("memory", False, f"{why}; LimitMEMLOCK=infinity in the unit grants it")
    return Measure("memory", True, "locked")


def _favour(nice: int) -> Measure:
    """Every thread there is; those made later by the one with a priority begin at 0 again."""
    try:
        for thread in os.listdir("/proc/self/task"):
            with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
                os.setpriority(os.PRIO_PROCESS, int(thread), nice)
    except OSError as error:
        return Measure("niceness", False, f"{error.strerror}; LimitNICE={nice} in the unit grants it")
    return Measure("niceness", True, str(nice))


def favoured_pool(nice: int) -> ThreadPoolExecutor:
    """Worker threads with this niceness, ordinary ones where it is refused. What they start inherits it."""
    return ThreadPoolExecutor(thread_name_prefix="service", initializer=_favour_thread, initargs=(nice,))


def _favour_thread(nice: int) -> None:
    with contextlib.suppress(OSError):  # ``make_realtime`` reports it
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)


def _fifo(priority: int) -> Measure:
    """Children start with the ordinary scheduler: a thread pool must not inherit FIFO."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(priority))
    except OSError as error:
        return Measure("scheduler", False, f"{error.strerror}; LimitRTPRIO={priority} in the unit grants it")
    return Measure("scheduler", True, f"SCHED_FIFO {priority}")


def die_with_parent(parent_pid: int) -> bool:
    """Have the kernel kill this process when its parent goes. False when the parent is already gone."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    return os.getppid() == parent_pid
