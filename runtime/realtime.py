"""Making a process as punctual as the machine permits, and saying honestly what was refused."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

_MCL_CURRENT_AND_FUTURE = 1 | 2
_PR_SET_PDEATHSIG = 1


class RealtimeConfig(BaseModel):
    """What to ask the kernel for. ``priority`` 0 keeps the ordinary scheduler; ``cpus`` empty: any."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    priority: int = Field(0, ge=0, le=90)
    cpus: tuple[int, ...] = ()
    lock_memory: bool = False


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

    Call it last, in a process that starts no further threads: what is running stays as it was.
    """
    measures = [_freeze_collector()]
    if config.cpus:
        measures.append(_pin(config.cpus))
    if config.lock_memory:
        measures.append(_lock_memory())
    if config.priority:
        measures.append(_fifo(config.priority))
    return RealtimeReport(tuple(measures))


def _freeze_collector() -> Measure:
    """What lives now lives on: no collection ever walks it, none starts by itself."""
    gc.collect()
    gc.freeze()
    gc.disable()
    return Measure("collector", True, f"frozen, {gc.get_freeze_count()} objects")


def _pin(cpus: Iterable[int]) -> Measure:
    wanted = sorted(set(cpus))
    try:
        os.sched_setaffinity(0, wanted)
    except OSError as error:
        return Measure(
            "affinity", False, f"cpus {wanted}: {error.strerror}; this machine has {os.cpu_count()}"
        )
    return Measure("affinity", True, f"cpus {wanted}")


def _lock_memory() -> Measure:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlockall(_MCL_CURRENT_AND_FUTURE):
        why = os.strerror(ctypes.get_errno())
        return Measure("memory", False, f"{why}; LimitMEMLOCK=infinity in the unit grants it")
    return Measure("memory", True, "locked")


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
