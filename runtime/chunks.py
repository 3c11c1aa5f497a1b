"""Plays action chunks: which row belongs to which tick, when to ask for the next chunk.

A chunk's row ``i`` is meant for tick ``start_tick + i``, where ``start_tick`` is the tick of the
observation it was computed from. A chunk that arrives late is trimmed by the ticks that were
really played meanwhile, never by an estimate of the latency, and its first rows are blended with
what the arm would have done otherwise. The same code runs in lockstep (a chunk arrives in the tick that
asked for it) and in real time (it arrives some ticks later).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hal.types import JOINTS, Vector
from runtime.nouns import ActionChunk

#: Joints whose disagreement counts: the gripper opens and closes in steps, so a phase one tick
#: earlier would drown everything else.
ARM_JOINTS = len(JOINTS) - 1


class ChunkPlayer:
    """The chunk being played, and the one that replaces it.

    ``execute`` is how many ticks after a chunk's observation the next one is asked for; rows
    beyond it are what is played while the answer is under way. ``blend`` is over how many ticks
    the old plan fades into the new one (0: switch at once). Raises ValueError on a bad argument.
    """

    def __init__(self, execute: int, blend: int = 4) -> None:
        if execute < 1:
            raise ValueError(f"execute is {execute} ticks; it must be at least 1")
        if blend < 0:
            raise ValueError(f"blend is {blend} ticks; it must not be negative")
        self._execute = execute
        ramp = np.arange(1, blend + 1, dtype=np.float64) / (blend + 1)
        self._ramp: npt.NDArray[np.float64] = ramp[:, None]
        self.reset()

    def reset(self) -> None:
        """Forget everything: before an episode, after a take-over, after a hold."""
        self._chunk: ActionChunk | None = None
        self._plan: npt.NDArray[np.float64] | None = None
        self._plan_tick = 0
        self._overlap_error: float | None = None
        self._dropped = 0

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

        Mean absolute difference over all ticks both of them predicted, gripper left out. None for a
        first chunk, one without overlap, and one made by another policy version than its
        predecessor (a swap is no sign of trouble). It does not depend on the latency.
        """
        return self._overlap_error

    def wants(self, tick: int) -> bool:
        """Whether an observation of this tick should be sent for a new chunk.

        Stays True until a chunk is accepted: a caller with a request under way doesn't send another.
        """
        if self._chunk is None or self._plan is None:
            return True
        due = tick - self._chunk.start_tick >= self._execute
        return due or tick >= self._plan_tick + len(self._plan)

    def offer(self, chunk: ActionChunk, tick: int) -> bool:
        """Take a chunk; ``tick`` is the next tick to be played. Returns False when it is dropped.

        Dropped are chunks with no row left to play, chunks computed from an older observation or
        by an older epoch than the one playing, and chunks with a NaN or an infinity.
        """
        skip = tick - chunk.start_tick
        if not 0 <= skip < len(chunk.actions) or self._is_older(chunk) or not _is_finite(chunk):
            self._dropped += 1
            return False
        fresh = chunk.actions[skip:].astype(np.float64)
        self._blend_into(fresh, tick)
        self._overlap_error = overlap_error(self._chunk, chunk)
        self._chunk, self._plan, self._plan_tick = chunk, fresh, tick
        return True

    def action(self, tick: int) -> Vector | None:
        """The joint goals for a tick, float64 (A,) rad; None when nothing covers it: hold."""
        if self._plan is None:
            return None
        row = tick - self._plan_tick
        if not 0 <= row < len(self._plan):
            return None
        return self._plan[row].copy()

    def _is_older(self, chunk: ActionChunk) -> bool:
        playing = self._chunk
        if playing is None:
            return False
        return chunk.start_tick <= playing.start_tick or chunk.epoch < playing.epoch

    def _blend_into(self, fresh: npt.NDArray[np.float64], tick: int) -> None:
        """Fade from the present plan into ``fresh``, whose first row is for ``tick``, in place."""
        if self._plan is None:
            return
        old = self._plan[max(tick - self._plan_tick, 0) :]
        n = min(len(self._ramp), len(old), len(fresh))
        if n:
            weight = self._ramp[:n]
            fresh[:n] = weight * fresh[:n] + (1.0 - weight) * old[:n]


def overlap_error(old: ActionChunk | None, new: ActionChunk) -> float | None:
    """Mean |new − old| over the ticks both predicted, rad, gripper left out; None without overlap."""
    if old is None or old.version != new.version:
        return None
    shift = new.start_tick - old.start_tick
    n = min(len(old.actions) - shift, len(new.actions))
    if shift < 0 or n <= 0:
        return None
    difference = new.actions[:n, :ARM_JOINTS] - old.actions[shift : shift + n, :ARM_JOINTS]
    return float(np.abs(difference).mean(dtype=np.float64))


def _is_finite(chunk: ActionChunk) -> bool:
    return bool(np.isfinite(chunk.actions).all())
