"""Flags a joint that does not follow its goals."""

from __future__ import annotations

from collections import deque

from hal.types import JOINTS
from runtime.monitors.config import MonitorConfig
from runtime.monitors.row import MonitorRow
from runtime.nouns import Flag

_ARM = len(JOINTS) - 1


class TrackingMonitor:
    """A joint stays outside the band its recent goals swept by more than the limit.

    Comparing with a band of recent goals rather than with the newest one leaves out the lag that a
    moving joint always has. The gripper is left out: on an object it never reaches its goal.
    """

    kind = "tracking"

    def __init__(self, config: MonitorConfig) -> None:
        self._limit = config.tracking_limit_rad
        self._hold = config.tracking_hold_ticks
        self._goals: deque[list[float]] = deque(maxlen=config.tracking_lag_ticks)
        self.reset(None)

    def reset(self, task_limit_ticks: int | None) -> None:
        self._goals.clear()
        self._since = [0] * _ARM
        self._since_ns = [0] * _ARM

    def update(self, row: MonitorRow, elapsed: int) -> Flag | None:
        position = row.joints.position.tolist()
        self._goals.append(row.goal.tolist())
        worst, error = -1, 0.0
        for joint, band in zip(range(_ARM), zip(*self._goals, strict=True), strict=False):
            here = position[joint]
            off = max(here - max(band), min(band) - here)
            if off <= self._limit:
                self._since[joint] = 0
                continue
            if self._since[joint] == 0:
                self._since_ns[joint] = row.t_ns
            self._since[joint] += 1
            if self._since[joint] >= self._hold and off > error:
                worst, error = joint, off
        if worst < 0:
            return None
        evidence = {"joint": JOINTS[worst], "error_rad": error, "limit_rad": self._limit}
        return Flag(self.kind, self._since_ns[worst], row.t_ns, error / self._limit, evidence)
