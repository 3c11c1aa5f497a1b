"""Flags a task that is not done in its time. That is not a failure by itself, so it has its own kind."""

from __future__ import annotations

from runtime.monitors.row import MonitorRow
from runtime.nouns import Flag


class TimeoutMonitor:
    """The episode has lasted ``task_limit_ticks`` and the task was never seen done."""

    kind = "timeout"

    def __init__(self) -> None:
        self.reset(None)

    def reset(self, task_limit_ticks: int | None) -> None:
        self._limit = task_limit_ticks
        self._done = False

    def update(self, row: MonitorRow, elapsed: int) -> Flag | None:
        if row.task_success:
            self._done = True
        if self._limit is None or self._done or elapsed < self._limit:
            return None
        evidence = {"elapsed_ticks": elapsed, "limit_ticks": self._limit}
        return Flag(self.kind, row.t_ns, row.t_ns, elapsed / self._limit, evidence)
