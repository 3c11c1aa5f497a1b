"""Ratchet's streams as LeRobot's rows: which tick, which sample and which picture each row shows.

A row is a tick. At the episode's own rate each tick becomes one row, in order, and nothing is invented:
a tick that was missed is missing, and shows as a step in ``capture_time_ns``. At another rate, or with
``fill``, rows stand at t0 + i / fps and each takes the newest tick not later than half a tick after it;
a row that shows the tick of the row before is marked ``repeated``, a tick no row shows is left out.
What a tick sees is what was known then: the newest sample and picture not later than the tick.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from episodes.errors import StoreError
from episodes.lerobot.bounds import LENGTH
from episodes.reader import Episode
from episodes.spec import TICK_STREAMS

_Ints = npt.NDArray[np.int64]
_Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Grid:
    """The rows of an episode: tick ``ticks[i]`` at ``t_ns[i]`` with number ``seq[i]``; ``repeated`` rows
    show the tick before again. ``left_out`` counts ticks that no row shows."""

    ticks: _Ints
    t_ns: _Ints
    seq: _Ints
    repeated: _Bools
    left_out: int

    def __len__(self) -> int:
        return len(self.ticks)


@dataclass(frozen=True, slots=True)
class Shown:
    """Which of a stream's samples (or pictures) each row shows; ``late`` marks rows before the first one."""

    index: _Ints
    repeated: _Bools
    left_out: int
    late: int


def rows_of(episode: Episode, fps: int, fill: bool) -> Grid:
    """The rows of ``episode`` at ``fps``. Raises StoreError when it has no ticks."""
    clock = episode.streams[tick_stream_name(episode)]
    count = len(clock)
    if not count:
        raise StoreError(f"episode {episode.id} has no tick", "leave it out")
    if not fill and abs(episode.meta.fps - fps) < 0.01 * fps:
        every = np.arange(count)
        return Grid(every, clock.t_ns, clock.seq, np.zeros(count, bool), 0)
    span = int(clock.t_ns[-1] - clock.t_ns[0])
    rows = round(span * fps / 1e9 - 0.499) + 1
    if rows > LENGTH:
        raise StoreError(f"episode {episode.id} spans {span / 1e9:.0f} s", "leave it out")
    at = clock.t_ns[0] + np.round(np.arange(rows) * 1e9 / fps).astype(np.int64)
    slack = int(0.5e9 / max(episode.meta.fps, fps))
    ticks = np.maximum(np.searchsorted(clock.t_ns, at + slack, side="right") - 1, 0)
    repeated = np.concatenate([[False], np.diff(ticks) == 0])
    return Grid(ticks, clock.t_ns[ticks], clock.seq[ticks], repeated, count - len(np.unique(ticks)))


def shown(t_ns: _Ints, grid: Grid) -> Shown:
    """For each row the newest sample of a stream not later than its tick; the first one before any."""
    newest = np.searchsorted(t_ns, grid.t_ns, side="right") - 1
    index = np.maximum(newest, 0)
    repeated = np.concatenate([[False], np.diff(index) == 0])
    return Shown(index, repeated, len(t_ns) - len(np.unique(index)), int((newest < 0).sum()))


def tick_stream_name(episode: Episode) -> str:
    """The stream whose rows are the episode's ticks. Raises StoreError when there is none."""
    for name in TICK_STREAMS:
        if name in episode.meta.streams:
            return name
    raise StoreError(
        f"episode {episode.id} has neither of {', '.join(TICK_STREAMS)}",
        "it cannot become rows; leave it out",
    )
