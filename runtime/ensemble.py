"""Temporal ensembling: every tick's goal is a weighted mean of what all recent chunks said of that tick.

Zhao et al., "Learning Fine-Grained Bimanual Manipulation with Low-Cost Hardware" (2023), algorithm 2: of
the n predictions for one tick the i-th oldest weighs exp(−m·i). With m > 0 the oldest counts most
(theirs: 0.01), with m < 0 the newest.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from runtime.chunks import is_finite, is_older, overlap_error, ramp
from runtime.nouns import ActionChunk, Vector

LONGEST = 1024
FITS = 2  # ticks


class EnsemblePlayer:
    """A `runtime.chunks.Player` that averages; for a policy that answers (nearly) every tick.

    ``every`` is how many ticks after a chunk's observation the next one is asked for. The sums are kept
    for each coming tick, so a chunk costs one pass over its rows whatever the number of chunks, and nothing
    is kept of it. Rows of ticks already played are left out. Chunks of another version are never averaged
    with the old one's: they begin a new ensemble, into which the old one's plan fades over ``blend`` ticks.
    So does every chunk while answers take longer than ``FITS`` ticks: a mean of old plans is of no use.
    Raises ValueError on a bad argument.
    """

    def __init__(self, decay: float, every: int = 1, blend: int = 4) -> None:
        if not -1.0 <= decay <= 1.0:
            raise ValueError(f"the ensemble's decay is {decay}; it must lie between -1 and 1")
        if every < 1 or blend < 0:
            raise ValueError(f"every is {every} and blend {blend} ticks; at least 1 and 0 are needed")
        self._weights = np.exp(-decay * np.arange(LONGEST))
        self._every = every
        self._ramp = ramp(blend)
        self._expected = 0
        self.reset()

    def reset(self) -> None:
        """Forget everything: before an episode, after a take-over, after a hold."""
        self._chunk: ActionChunk | None = None
        self._overlap_error: float | None = None
        self._dropped = 0
        self._first = 0  # the tick of row 0 of what follows
        self._mean: npt.NDArray[np.float64] = np.zeros((0, 1))
        self._weight: npt.NDArray[np.float64] = np.zeros(0)
        self._count: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        self._fade: npt.NDArray[np.float64] | None = None
        self._fade_first = 0

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
        """See `runtime.chunks.ChunkPlayer.overlap_error`."""
        return self._overlap_error

    def expect(self, ticks: int) -> None:
        """How many ticks an answer takes at present; 0 when it comes in the tick that asked."""
        self._expected = ticks

    def wants(self, tick: int) -> bool:
        """Whether an observation of this tick should be sent for a new chunk."""
        return self._chunk is None or tick - self._chunk.start_tick >= self._every

    def offer(self, chunk: ActionChunk, tick: int) -> bool:
        """Take a chunk; ``tick`` is the next tick to be played. Returns False when it is dropped."""
        skip = tick - chunk.start_tick
        rows = min(len(chunk.actions), LONGEST)
        if not 0 <= skip < rows or is_older(chunk, self._chunk) or not is_finite(chunk):
            self._dropped += 1
            return False
        other = self._chunk is not None and chunk.version != self._chunk.version
        if other or self._expected > FITS:
            self._begin_fade(tick)
        self._add(chunk.actions[skip:rows].astype(np.float64), tick)
        self._overlap_error = overlap_error(self._chunk, chunk)
        self._chunk = chunk
        return True

    def action(self, tick: int) -> Vector | None:
        """The joint goals for a tick, float64 (A,) rad; None when nothing covers it: hold."""
        row = tick - self._first
        if not 0 <= row < len(self._mean):
            return None
        goal: Vector = self._mean[row].copy()
        if self._fade is not None and 0 <= tick - self._fade_first < len(self._fade):
            share = self._ramp[tick - self._fade_first]
            goal = share * goal + (1.0 - share) * self._fade[tick - self._fade_first]
        return goal

    def _add(self, fresh: npt.NDArray[np.float64], tick: int) -> None:
        """Fold a chunk's rows, the first of which is for ``tick``, into the running means."""
        past = min(max(tick - self._first, 0), len(self._mean))
        n = max(len(self._mean) - past, len(fresh))
        mean, weight, count = np.zeros((n, fresh.shape[1])), np.zeros(n), np.zeros(n, np.int64)
        kept = len(self._mean) - past
        if kept:
            mean[:kept], weight[:kept] = self._mean[past:], self._weight[past:]
            count[:kept] = self._count[past:]
        new = self._weights[np.minimum(count[: len(fresh)], LONGEST - 1)]
        weight[: len(fresh)] += new
        mean[: len(fresh)] += (new / weight[: len(fresh)])[:, None] * (fresh - mean[: len(fresh)])
        count[: len(fresh)] += 1
        self._first, self._mean, self._weight, self._count = tick, mean, weight, count

    def _begin_fade(self, tick: int) -> None:
        """Keep what the old version would do next, and begin anew."""
        coming = range(tick, tick + len(self._ramp))
        rows = [row for row in map(self.action, coming) if row is not None]
        self._fade, self._fade_first = (np.array(rows), tick) if rows else (None, 0)
        self._mean = np.zeros((0, 1))
        self._weight, self._count = np.zeros(0), np.zeros(0, np.int64)
