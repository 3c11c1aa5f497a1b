"""Runs all monitors over an episode: one flag per continuing condition, and when to ask for help.

A flag only tags the episode. Help is asked for when two signals that fail in different ways agree
over a sliding window: the policy disagrees with itself *and* what it sees is unfamiliar.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from runtime.monitors.config import MonitorConfig
from runtime.monitors.disagreement import DisagreementMonitor
from runtime.monitors.lost_replies import LostRepliesMonitor
from runtime.monitors.row import Monitor, MonitorRow
from runtime.monitors.stall import StallMonitor
from runtime.monitors.thresholds import Thresholds
from runtime.monitors.timeout import TimeoutMonitor
from runtime.monitors.tracking import TrackingMonitor
from runtime.monitors.unfamiliar import UnfamiliarMonitor
from runtime.nouns import Flag

log = logging.getLogger(__name__)


class ChunkSignal(NamedTuple):
    """The raw signals of one chunk: what thresholds are calibrated from.

    ``tick`` counts from the episode's first row; ``error`` rad; ``novelty`` is None without calibration;
    ``reversals`` counts the commanded direction changes since the chunk before.
    """

    tick: int
    error: float | None
    novelty: float | None
    reversals: int


class _Open:
    """A flag whose condition was true a short while ago."""

    __slots__ = ("flag", "last_tick")

    def __init__(self, flag: Flag, tick: int) -> None:
        self.flag = flag
        self.last_tick = tick

    def extend(self, seen: Flag, tick: int) -> None:
        worst = seen if seen.score > self.flag.score else self.flag
        self.flag = Flag(self.flag.kind, self.flag.start_ns, seen.end_ns, worst.score, worst.evidence)
        self.last_tick = tick


class MonitorBank:
    """All monitors of one arm.

    ``thresholds`` is the serving bundle's ``manifest.monitors``; without it (None) the disagreement
    and unfamiliar monitors stay silent, which is logged once. ``task_limit_ticks`` is the time the
    task may take (None: no limit). Raises ThresholdError when the thresholds make no sense.
    """

    def __init__(
        self,
        config: MonitorConfig,
        thresholds: Mapping[str, Any] | None,
        task_limit_ticks: int | None,
    ) -> None:
        self._config = config
        self._task_limit_ticks = task_limit_ticks
        self._disagreement = DisagreementMonitor(Thresholds())
        self._unfamiliar = UnfamiliarMonitor(Thresholds())
        self._monitors: tuple[Monitor, ...] = (
            TimeoutMonitor(),
            TrackingMonitor(config),
            StallMonitor(config),
            LostRepliesMonitor(config),
            self._disagreement,
            self._unfamiliar,
        )
        self.recalibrate(thresholds)
        self.reset()

    def recalibrate(self, thresholds: Mapping[str, Any] | None) -> None:
        """Use another bundle's thresholds from the next row on: after each swap."""
        self._thresholds = Thresholds.parse(thresholds)
        self._disagreement.thresholds = self._thresholds
        self._unfamiliar.thresholds = self._thresholds
        if thresholds is None:
            log.warning(
                "monitors.uncalibrated silent=disagreement,unfamiliar reason=bundle has no thresholds"
            )

    def reset(self, task_limit_ticks: int | None = None) -> None:
        """Begin an episode; a limit given here replaces the one from the constructor."""
        if task_limit_ticks is not None:
            self._task_limit_ticks = task_limit_ticks
        for monitor in self._monitors:
            monitor.reset(self._task_limit_ticks)
        self._first_tick: int | None = None
        self._open: dict[str, _Open] = {}
        self._closed: list[Flag] = []
        self._signals: list[ChunkSignal] = []
        self._recent: deque[tuple[bool, bool]] = deque(maxlen=self._config.help_window)

    def novelty(self, features: npt.NDArray[np.float32] | None) -> float | None:
        """Mahalanobis distance of a chunk's features (D,), for `MonitorRow.novelty`; None uncalibrated."""
        if features is None or self._thresholds.familiarity is None:
            return None
        return self._thresholds.familiarity.distance(features)

    def update(self, row: MonitorRow) -> list[Flag]:
        """Judge one tick. Returns the flags that *began* with it; their spans are final in `finish`."""
        if self._first_tick is None:
            self._first_tick = row.tick
        elapsed = row.tick - self._first_tick
        began: list[Flag] = []
        for monitor in self._monitors:
            seen = monitor.update(row, elapsed)
            if seen is not None and self._note(seen, elapsed):
                began.append(seen)
        if row.chunk_error is not None or row.novelty is not None:
            self._note_chunk(row, elapsed)
        return began

    def finish(self) -> list[Flag]:
        """All flags of the episode with their final spans, by start time. These are the ones to record."""
        flags = self._closed + [entry.flag for entry in self._open.values()]
        return sorted(flags, key=lambda flag: (flag.start_ns, flag.kind))

    @property
    def signals(self) -> list[ChunkSignal]:
        """The raw signals of each chunk of this episode so far."""
        return list(self._signals)

    @property
    def calibrated(self) -> bool:
        """Whether help can be asked for at all: both calibrated monitors have their thresholds."""
        return self._thresholds.disagreement is not None and self._thresholds.unfamiliar is not None

    @property
    def ask_help(self) -> bool:
        """Whether disagreement and unfamiliarity agree, now, over the last chunks."""
        need = self._config.help_count
        if len(self._recent) < need:
            return False
        return sum(d for d, _ in self._recent) >= need and sum(u for _, u in self._recent) >= need

    def _note(self, seen: Flag, tick: int) -> bool:
        """Merge a monitor's verdict into its open flag; True when it begins a new one."""
        entry = self._open.get(seen.kind)
        if entry is not None and tick - entry.last_tick <= self._config.merge_gap_ticks:
            entry.extend(seen, tick)
            return False
        if entry is not None:
            self._closed.append(entry.flag)
        self._open[seen.kind] = _Open(seen, tick)
        return True

    def _note_chunk(self, row: MonitorRow, elapsed: int) -> None:
        reversals = self._disagreement.chunk_reversals if row.chunk_error is not None else 0
        self._signals.append(ChunkSignal(elapsed, row.chunk_error, row.novelty, reversals))
        disagrees = row.chunk_error is not None and (self._disagreement.score or 0.0) > 1.0
        unfamiliar = row.novelty is not None and (self._unfamiliar.score or 0.0) > 1.0
        self._recent.append((disagrees, unfamiliar))
