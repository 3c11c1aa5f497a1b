"""The control loop's figures as Prometheus samples."""

from __future__ import annotations

from runtime.health import Metric
from runtime.loop import ControlLoop


def loop_metrics(loop: ControlLoop) -> list[Metric]:
    """Counters since the start and percentiles of the recent window; seconds."""
    sample = loop.sample
    figures = loop.stats.figures(sample.cycles if sample else 0, sample.lost if sample else 0)
    inference_s = figures.inference_ms_p99 / 1e3
    return [
        Metric("loop_ticks_total", "counter", "Control ticks run.", figures.ticks),
        Metric("loop_missed_total", "counter", "Control ticks skipped.", figures.missed),
        Metric("loop_period_p99_seconds", "gauge", "p99 of the tick period.", figures.period_ms_p99 / 1e3),
        Metric("inference_p99_seconds", "gauge", "p99 from observation to chunk.", inference_s),
        Metric("bus_cycles_total", "counter", "Bus cycles run.", figures.bus_cycles),
        Metric("bus_lost_total", "counter", "Replies lost.", figures.bus_lost),
    ]
