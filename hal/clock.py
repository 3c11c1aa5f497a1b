"""Time for every component: the machine's monotonic clock, or a simulator's.

Durations are monotonic nanoseconds everywhere; wall time is only ever a label.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Source of monotonic nanoseconds."""

    def now_ns(self) -> int:
        """Monotonic time in nanoseconds."""


class MonotonicClock:
    """The machine's CLOCK_MONOTONIC."""

    def now_ns(self) -> int:
        return time.monotonic_ns()


class LockstepClock:
    """A clock that moves only when the simulation does: same seed, same time stamps."""

    def __init__(self, start_ns: int = 0) -> None:
        self._now_ns = start_ns

    def now_ns(self) -> int:
        return self._now_ns

    def advance(self, ns: int) -> None:
        """Move forward by ``ns`` ≥ 0. Raises ValueError on a step back."""
        if ns < 0:
            raise ValueError(f"a monotonic clock cannot go back by {-ns} ns")
        self._now_ns += ns
