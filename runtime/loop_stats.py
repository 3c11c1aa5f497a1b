"""Figures of the control loop: periods, lateness, missed ticks, inference times. Fixed memory."""

from __future__ import annotations

import numpy as np

from runtime.remote.facade import LoopFigures

WINDOW = 1 << 14  # ticks kept for the percentiles: nine minutes at 30 Hz


class Samples:
    """The last ``WINDOW`` values of one quantity, and its maximum since the start."""

    def __init__(self) -> None:
        self._values = np.zeros(WINDOW)
        self._count = 0
        self.maximum = 0.0

    def add(self, value: float) -> None:
        """Take one value."""
        self._values[self._count % WINDOW] = value
        self._count += 1
        self.maximum = max(self.maximum, value)

    def percentile(self, q: float) -> float:
        """The ``q``-th percentile of the window; 0 before the first value."""
        n = min(self._count, WINDOW)
        return float(np.percentile(self._values[:n], q)) if n else 0.0


class LoopStats:
    """Counts ticks as they happen; computing the figures is left to whoever asks."""

    def __init__(self) -> None:
        self.ticks = 0
        self.missed = 0
        self.period_ms = Samples()
        self.lateness_ms = Samples()
        self.inference_ms = Samples()
        self._last_ns: int | None = None

    def tick(self, now_ns: int, lateness_ns: int, missed: int) -> None:
        """One tick ran at ``now_ns``, ``lateness_ns`` late; ``missed`` were skipped before it."""
        if self._last_ns is not None:
            self.period_ms.add((now_ns - self._last_ns) / 1e6)
        self._last_ns = now_ns
        self.lateness_ms.add(lateness_ns / 1e6)
        self.ticks += 1
        self.missed += missed

    def figures(self, bus_cycles: int, bus_lost: int) -> LoopFigures:
        """Everything a person asks for, in milliseconds and counts."""
        return LoopFigures(
            ticks=self.ticks,
            missed=self.missed,
            period_ms_p50=self.period_ms.percentile(50),
            period_ms_p99=self.period_ms.percentile(99),
            period_ms_max=self.period_ms.maximum,
            lateness_ms_p99=self.lateness_ms.percentile(99),
            inference_ms_p50=self.inference_ms.percentile(50),
            inference_ms_p99=self.inference_ms.percentile(99),
            bus_cycles=bus_cycles,
            bus_lost=bus_lost,
        )
