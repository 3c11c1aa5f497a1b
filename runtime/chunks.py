"""Plays action chunks: which row belongs to which tick, when to ask for the next chunk.

Time here is counted in rows. Row ``i`` of a chunk is meant for the moment ``i`` rows after the observation
it was computed from, and one tick plays one row, or less: when answers take longer than ``slack`` ticks, the
arm slows down while one is under way, so that no more than ``slack`` rows go by between an observation and
the first row that is played of its chunk. While nothing is played no row goes by at all. A chunk that
arrives late is thus trimmed by the rows that were really played meanwhile, never by an estimate of
the latency, and its first rows are blended with what the arm would have done otherwise. The same code runs
in lockstep (a chunk arrives in the tick that asked for it) and in real time (it arrives some ticks later).
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from hal.types import JOINTS, Vector
from runtime.nouns import ActionChunk

#: Joints whose disagreement counts: the gripper opens and closes in steps, so a phase one tick
#: earlier would drown everything else.
ARM_JOINTS = len(JOINTS) - 1
BLEND = 8
SLACK = 3
_EASE = 0.2  # rows a tick by which the pace changes from one tick to the next
_REMEMBERED = 512  # ticks whose row is known, for answers that are long under way

Rows = npt.NDArray[np.float64]


class Player(Protocol):
    """What turns chunks into one goal a tick; see `ChunkPlayer` for what each member means."""

    @property
    def chunk(self) -> ActionChunk | None: ...

    @property
    def overlap_error(self) -> float | None: ...

    def reset(self) -> None: ...

    def expect(self, ticks: int) -> None: ...

    def wants(self, tick: int) -> bool: ...

    def offer(self, chunk: ActionChunk, tick: int) -> bool: ...

    def action(self, tick: int) -> Vector | None: ...


class ChunkPlayer:
    """The chunk being played, and the one that replaces it.

    ``execute`` is how many rows of a chunk are meant to be played; the rows beyond are for answers that
    are late. ``blend`` is over how many rows the old plan fades into the new one (0: switch at once), and
    ``slack`` how many rows may go by while an answer is under way. Raises ValueError on a bad argument.
    """

    def __init__(self, execute: int, blend: int = BLEND, slack: int = SLACK) -> None:
        if execute < 1:
            raise ValueError(f"execute is {execute} ticks; it must be at least 1")
        if blend < 0:
            raise ValueError(f"blend is {blend} ticks; it must not be negative")
        if slack < 1:
            raise ValueError(f"slack is {slack} ticks; it must be at least 1")
        self._execute = execute
        self._slack = slack
        self._ramp = ramp(blend)
        self._expected = 0
        self.reset()

    def reset(self) -> None:
        """Forget everything: before an episode, after a take-over, after a hold."""
        self._chunk: ActionChunk | None = None
        self._chunk_row = 0.0
        self._plan: Rows | None = None
        self._plan_row = 0.0
        self._overlap_error: float | None = None
        self._dropped = 0
        self._tick, self._row, self._rate = 0, 0.0, 1.0
        self._seen: dict[int, float] = {}

    @property
    def chunk(self) -> ActionChunk | None:
        """The chunk accepted last."""
        return self._chunk

    @property
    def dropped(self) -> int:
        """Chunks refused since the last reset: too late, out of order, or not finite."""
        return self._dropped

    @property
    def overlap_error(self) -> float | None:
        """How much the last accepted chunk disagrees with its predecessor, rad.

        Mean absolute difference over all rows both of them predicted, gripper left out. None for a
        first chunk, one without overlap, and one made by another policy version than its
        predecessor (a swap is no sign of trouble). It does not depend on the latency.
        """
        return self._overlap_error

    def expect(self, ticks: int) -> None:
        """How many ticks an answer takes at present; 0 when it comes in the tick that asked."""
        self._expected = ticks

    def wants(self, tick: int) -> bool:
        """Whether an observation of this tick should be sent for a new chunk.

        Stays True until a chunk is accepted: a caller with a request under way doesn't send another.
        """
        return self._plan is None or self._due(self._plan, self._row_at(tick))

    def offer(self, chunk: ActionChunk, tick: int) -> bool:
        """Take a chunk; ``tick`` is the next tick to be played. Returns False when it is dropped.

        Dropped are chunks with no row left to play, chunks computed from an older observation or
        by an older epoch than the one playing, and chunks with a NaN or an infinity.
        """
        row = self._row_at(tick)
        first = self._seen.get(chunk.start_tick, row - (tick - chunk.start_tick))
        skip = row - first
        if not 0 <= skip < len(chunk.actions) or is_older(chunk, self._chunk) or not is_finite(chunk):
            self._dropped += 1
            return False
        fresh = _from(chunk.actions.astype(np.float64), skip)
        self._blend_into(fresh, row)
        self._overlap_error = overlap_error(self._chunk, chunk, round(first - self._chunk_row))
        self._chunk, self._chunk_row, self._plan, self._plan_row = chunk, first, fresh, row
        return True

    def action(self, tick: int) -> Vector | None:
        """The joint goals for a tick, float64 (A,) rad; None when nothing covers it: hold.

        Ask once a tick, in order: what is asked for counts as played.
        """
        row = self._row_at(tick)
        plan = self._plan
        goal = None if plan is None else _at(plan, row - self._plan_row)
        self._tick, self._row = tick, row
        self._seen[tick] = row
        if len(self._seen) > _REMEMBERED:
            del self._seen[next(iter(self._seen))]
        self._rate = 0.0 if plan is None or goal is None else self._next_rate(plan, row)
        return goal

    def _row_at(self, tick: int) -> float:
        return self._row + self._rate * (tick - self._tick)

    def _due(self, plan: Rows, row: float) -> bool:
        ahead = min(self._expected, self._slack, self._execute - 1)
        return row - self._chunk_row >= self._execute - ahead or row >= self._plan_row + len(plan)

    def _next_rate(self, plan: Rows, row: float) -> float:
        """Towards one row a tick, or towards what lets ``slack`` rows go by while an answer is due."""
        wanted = 1.0
        if self._expected > self._slack and self._due(plan, row):
            wanted = self._slack / self._expected
        return self._rate + min(max(wanted - self._rate, -_EASE), _EASE)

    def _blend_into(self, fresh: Rows, row: float) -> None:
        """Fade from the present plan into ``fresh``, whose first row is ``row``, in place.

        Where the old plan ends within the fade, its last difference from the new one fades out.
        """
        if self._plan is None:
            return
        old = _from(self._plan, max(row - self._plan_row, 0.0))
        n = min(len(self._ramp), len(fresh))
        common = min(n, len(old))
        if common:
            off = old[:common] - fresh[:common]
            off = np.concatenate([off, np.repeat(off[-1:], n - common, axis=0)])
            fresh[:n] += (1.0 - self._ramp[:n]) * off


def _at(plan: Rows, row: float) -> Vector | None:
    """The plan between two of its rows; None beyond its ends."""
    if not 0.0 <= row < len(plan):
        return None
    whole = int(row)
    part = row - whole
    if part == 0.0 or whole + 1 == len(plan):
        return plan[whole].copy()
    between: Vector = (1.0 - part) * plan[whole] + part * plan[whole + 1]
    return between


def _from(plan: Rows, row: float) -> Rows:
    """The plan from ``row`` on, row by row, the caller's own; empty beyond its end."""
    whole = int(row)
    part = row - whole
    rest = plan[whole:].copy()
    if part > 0.0 and len(rest) > 1:
        rest[:-1] += part * (rest[1:] - rest[:-1])
    return rest


def overlap_error(old: ActionChunk | None, new: ActionChunk, shift: int | None = None) -> float | None:
    """Mean |new − old| over the rows both predicted, rad, gripper left out; None without overlap.

    ``shift`` is by how many rows the new chunk begins later (default: as many as ticks).
    """
    if old is None or old.version != new.version:
        return None
    shift = new.start_tick - old.start_tick if shift is None else shift
    n = min(len(old.actions) - shift, len(new.actions))
    if shift < 0 or n <= 0:
        return None
    difference = new.actions[:n, :ARM_JOINTS] - old.actions[shift : shift + n, :ARM_JOINTS]
    return float(np.abs(difference).mean(dtype=np.float64))


def is_older(chunk: ActionChunk, playing: ActionChunk | None) -> bool:
    """Whether ``chunk`` has no newer an observation than the one playing, or an older epoch."""
    if playing is None:
        return False
    return chunk.start_tick <= playing.start_tick or chunk.epoch < playing.epoch


def is_finite(chunk: ActionChunk) -> bool:
    """Whether no action of it is a NaN or an infinity."""
    return bool(np.isfinite(chunk.actions).all())


def ramp(blend: int) -> Rows:
    """Weights of the new plan over ``blend`` rows, (blend, 1), none of them 0 or 1.

    The quintic 10s³ − 15s⁴ + 6s⁵, whose velocity and acceleration vanish at both ends (Flash and Hogan's
    minimum-jerk profile): a fade adds no corner to the motion.
    """
    s = np.arange(1, blend + 1, dtype=np.float64) / (blend + 1)
    weights: Rows = s**3 * (10.0 - 15.0 * s + 6.0 * s**2)
    return weights[:, None]
