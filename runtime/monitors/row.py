"""What a monitor sees of one control tick, and what a monitor is."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from hal.types import JointState, Vector
from runtime.nouns import Flag, Source


class MonitorRow(NamedTuple):
    """One control tick.

    ``tick`` counts control ticks (any origin; the bank counts from the episode's first row);
    ``t_ns`` monotonic. ``goal`` rad (6,) is what the guard let through, ``asked`` rad (6,) what was
    asked for. ``chunk_error`` (rad, `ChunkPlayer.overlap_error`) and ``novelty`` (no unit,
    `MonitorBank.novelty`) are given on the tick a chunk was accepted and None on all others, so that
    each chunk counts once. ``bus_lost`` is the bus's running count of lost and corrupt replies.
    ``task_success`` is the task's own judgement where there is one.
    """

    tick: int
    t_ns: int
    joints: JointState
    goal: Vector
    asked: Vector
    source: Source = Source.POLICY
    chunk_error: float | None = None
    novelty: float | None = None
    bus_lost: int = 0
    task_success: bool | None = None


class Monitor(Protocol):
    """Looks at each tick for one kind of trouble; keeps no state beyond an episode."""

    kind: str

    def reset(self, task_limit_ticks: int | None) -> None:
        """Begin an episode; ``task_limit_ticks`` is the time the task may take, None: no limit."""

    def update(self, row: MonitorRow, elapsed: int) -> Flag | None:
        """Judge one tick; ``elapsed`` is how many ticks the episode has lasted.

        Returns a flag for as long as the condition holds, its score relative to the limit (1 = at
        the limit), its start the time from which it is known to have held.
        """
