"""Flags a task that a policy has not done in its time. Not a failure by itself, so it has its own kind."""

from __future__ import annotations

from runtime.monitors.row import MonitorRow
from runtime.nouns import Flag, Source


class TimeoutMonitor:
    """A policy has driven for ``task_limit_ticks`` and the task was never seen done.

    Only the policy's ticks count: a person takes the time that a demonstration or a correction needs.
    """

    kind = "timeout"

    def __init__(self) -> None:
        self.reset(None)

    def reset(self, task_limit_ticks: int | None) -> None:
        self._limit = task_limit_ticks
        self._done = False
        self._driven = 0

    def update(self, row: MonitorRow, elapsed: int) -> Flag | None:
        if row.task_success:
            self._done = True
        if row.source is not Source.POLICY:
            return None
        driven, self._driven = self._driven, self._driven + 1
        if self._limit is None or self._done or driven < self._limit:
            return None
        evidence = {"elapsed_ticks": driven, "limit_ticks": self._limit}
        return Flag(self.kind, row.t_ns, row.t_ns, driven / self._limit, evidence)
