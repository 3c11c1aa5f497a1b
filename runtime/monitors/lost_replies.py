"""Flags a bus that loses replies, or joint values that have grown old by coasting."""

from __future__ import annotations

from collections import deque

from hal.types import JOINTS
from runtime.monitors.config import MonitorConfig
from runtime.monitors.row import MonitorRow
from runtime.nouns import Flag


class LostRepliesMonitor:
    """Too many replies lost within the window, or a motor silent for too long."""

    kind = "lost_replies"

    def __init__(self, config: MonitorConfig) -> None:
        self._limit = config.lost_limit
        self._age_ns = config.lost_age_ms * 1e6
        self._counts: deque[tuple[int, int]] = deque(maxlen=config.lost_window_ticks + 1)

    def reset(self, task_limit_ticks: int | None) -> None:
        self._counts.clear()

    def update(self, row: MonitorRow, elapsed: int) -> Flag | None:
        counts = self._counts
        if counts and row.bus_lost < counts[-1][0]:  # the bus process restarted and counts afresh
            counts.clear()
        counts.append((row.bus_lost, row.t_ns))
        lost = row.bus_lost - counts[0][0]
        ages = row.joints.age_ns.tolist()
        oldest = max(ages)
        score = max(lost / self._limit, oldest / self._age_ns)
        if score < 1.0:
            return None
        evidence = {
            "lost": lost,
            "window_ticks": len(counts) - 1,
            "oldest_ms": oldest / 1e6,
            "joint": JOINTS[ages.index(oldest)] if oldest else None,
        }
        start = counts[0][1] if lost >= self._limit else row.t_ns - oldest
        return Flag(self.kind, start, row.t_ns, score, evidence)
