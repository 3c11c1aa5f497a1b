"""Flags observations unlike those of the successful episodes the bundle was calibrated on."""

from __future__ import annotations

from runtime.monitors.row import MonitorRow
from runtime.monitors.thresholds import Thresholds
from runtime.nouns import Flag, Source


class UnfamiliarMonitor:
    """Mahalanobis distance of each chunk's encoder features against the bundle's band."""

    kind = "unfamiliar"

    def __init__(self, thresholds: Thresholds) -> None:
        self.thresholds = thresholds
        self.reset(None)

    def reset(self, task_limit_ticks: int | None) -> None:
        self.score: float | None = None
        self._flag: Flag | None = None

    def update(self, row: MonitorRow, elapsed: int) -> Flag | None:
        if row.source is not Source.POLICY:
            self._flag = None
            return None
        if row.novelty is not None and self.thresholds.unfamiliar is not None:
            self._judge(row, row.novelty, self.thresholds.unfamiliar.at(elapsed))
        if self._flag is None:
            return None
        return Flag(self.kind, self._flag.start_ns, row.t_ns, self._flag.score, self._flag.evidence)

    def _judge(self, row: MonitorRow, novelty: float, limit: float) -> None:
        self.score = novelty / limit
        if self.score <= 1.0:
            self._flag = None
            return
        start = self._flag.start_ns if self._flag else row.t_ns
        evidence = {"distance": novelty, "threshold": limit}
        self._flag = Flag(self.kind, start, row.t_ns, self.score, evidence)
