"""The control loop's figures as Prometheus samples."""

from __future__ import annotations

from dataclasses import fields

from hal.types import JOINTS
from runtime.bus_records import BusCounters
from runtime.loop import ControlLoop
from runtime.metrics import Metric


def loop_metrics(loop: ControlLoop) -> list[Metric]:
    """Counters since the start and percentiles of the recent window; seconds."""
    figures = loop.figures()
    inference_s = figures.inference_ms_p99 / 1e3
    counters = None if loop.sample is None else loop.sample.counters
    replies = [] if counters is None else _replies(counters)
    return [
        *replies,
        Metric("loop_ticks_total", "counter", "Control ticks run.", figures.ticks),
        Metric("loop_missed_total", "counter", "Control ticks skipped.", figures.missed),
        Metric("loop_period_p99_seconds", "gauge", "p99 of the tick period.", figures.period_ms_p99 / 1e3),
        Metric("inference_p99_seconds", "gauge", "p99 from observation to chunk.", inference_s),
        Metric("bus_cycles_total", "counter", "Bus cycles run.", figures.bus_cycles),
        Metric("bus_lost_total", "counter", "Replies lost.", figures.bus_lost),
    ]


def _replies(counters: BusCounters) -> list[Metric]:
    """What went wrong with each motor's replies."""
    return [
        Metric(
            "bus_replies_total",
            "counter",
            "Replies by motor and by what became of them.",
            count,
            {"joint": joint, "what": column.name},
        )
        for column in fields(counters)
        for joint, count in zip(JOINTS, getattr(counters, column.name).tolist(), strict=True)
    ]
