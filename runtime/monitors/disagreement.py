"""Flags a policy that contradicts itself: consecutive chunks disagree, or the motion dithers.

The error between overlapping chunks and the rate of direction reversals are the two signals that
predict failure for chunked policies at next to no cost; velocity and jerk are not.
"""

from __future__ import annotations

from hal.types import JOINTS
from runtime.monitors.row import MonitorRow
from runtime.monitors.thresholds import Thresholds
from runtime.nouns import Flag, Source

_ARM = len(JOINTS) - 1
#: Goal steps below this (rad a tick) are rounding, not motion: they neither make nor hide a reversal.
_DEADBAND_RAD = 1e-3


class DisagreementMonitor:
    """Overlap error (and reversals, where calibrated) of each chunk against the bundle's band."""

    kind = "disagreement"

    def __init__(self, thresholds: Thresholds) -> None:
        self.thresholds = thresholds
        self.reset(None)

    def reset(self, task_limit_ticks: int | None) -> None:
        self.score: float | None = None
        #: Direction reversals of the commanded arm joints between the last two chunks.
        self.chunk_reversals = 0
        self._reversals = 0
        self._last: list[float] | None = None
        self._direction = [0] * _ARM
        self._flag: Flag | None = None

    def update(self, row: MonitorRow, elapsed: int) -> Flag | None:
        if row.source is not Source.POLICY:
            self._last, self._flag = None, None
            return None
        self._count_reversals(row.asked.tolist())
        if row.chunk_error is not None:
            self.chunk_reversals, self._reversals = self._reversals, 0
            self._judge(row, row.chunk_error, elapsed)
        if self._flag is None:
            return None
        return Flag(self.kind, self._flag.start_ns, row.t_ns, self._flag.score, self._flag.evidence)

    def _count_reversals(self, asked: list[float]) -> None:
        last, self._last = self._last, asked
        if last is None:
            self._direction = [0] * _ARM
            return
        for joint in range(_ARM):
            step = asked[joint] - last[joint]
            if -_DEADBAND_RAD < step < _DEADBAND_RAD:
                continue
            direction = 1 if step > 0 else -1
            if direction == -self._direction[joint]:
                self._reversals += 1
            self._direction[joint] = direction

    def _judge(self, row: MonitorRow, error: float, elapsed: int) -> None:
        thresholds = self.thresholds
        if thresholds.disagreement is None:
            return
        limit = thresholds.disagreement.at(elapsed)
        score = error / limit
        if thresholds.reversals is not None:
            score = max(score, self.chunk_reversals / thresholds.reversals.at(elapsed))
        self.score = score
        if score <= 1.0:
            self._flag = None
            return
        start = self._flag.start_ns if self._flag else row.t_ns
        evidence = {"overlap_error_rad": error, "threshold_rad": limit, "reversals": self.chunk_reversals}
        self._flag = Flag(self.kind, start, row.t_ns, score, evidence)
