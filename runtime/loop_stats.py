"""Figures of the control loop: periods, lateness, missed ticks, inference times. Fixed memory.

Every tick also goes into a ring in the run directory, so that a benchmark sees each one as it was.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from runtime.nouns import ActionChunk, Observation, Source, Waypoint
from runtime.remote.facade import LoopFigures
from runtime.ring import RingReader, RingWriter, create_ring
from runtime.timing import Wake

WINDOW = 1 << 14  # ticks kept for the percentiles: nine minutes at 30 Hz
LOG_CAPACITY = 1024  # half a minute at 30 Hz for whoever reads along
TICK = np.dtype(
    [
        ("tick", "<i8"),
        ("deadline_ns", "<i8"),
        ("late_ns", "<i8"),
        ("skipped", "<i8"),
        ("cause", "S12"),
        ("exec_ns", "<i8"),
        ("collected_ns", "<i8"),
        ("source", "u1"),
        ("frame_ns", "<i8"),
        ("command_seq", "<i8"),
        ("chunk_tick", "<i8"),
    ]
)
"""One tick: when it was due, how late it began and why (``TickTimer.cause``), how long it took, how long
a full collection after it took (0: none), the stamp of the newest frame it saw (−1: none), the waypoint
it sent (−1: none), and the tick whose observation the chunk being played was computed from (−1: none)."""


class Samples:
    """The last ``WINDOW`` values of one quantity, and its maximum since the start."""

    def __init__(self) -> None:
        self._values = np.zeros(WINDOW)
        self._count = 0
        self._sorted = self._values[:0]
        self._sorted_at = 0
        self.maximum = 0.0

    def add(self, value: float) -> None:
        """Take one value."""
        self._values[self._count % WINDOW] = value
        self._count += 1
        self.maximum = max(self.maximum, value)

    def percentile(self, q: float) -> float:
        """The ``q``-th percentile of the window; 0 before the first value.

        Sorted afresh only when one value in 500 is new: figures are asked for beside the ticks.
        """
        n = min(self._count, WINDOW)
        if self._count - self._sorted_at > n // 500:
            self._sorted, self._sorted_at = np.sort(self._values[:n]), self._count
        if not n:
            return 0.0
        return float(self._sorted[min(round(q / 100 * (len(self._sorted) - 1)), len(self._sorted) - 1)])


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


class TickLog:
    """Writes every tick into ``run_dir/loop.ticks``. Raises RingError when that cannot be made."""

    def __init__(self, run_dir: Path) -> None:
        path = run_dir / "loop.ticks"
        create_ring(path, TICK, LOG_CAPACITY)
        self._ring = RingWriter(path, TICK)
        self._clear()

    def _clear(self) -> None:
        record = self._ring.record
        record["frame_ns"] = record["command_seq"] = record["chunk_tick"] = -1
        record["source"] = Source.NONE

    def decided(self, seen: Observation, sent: Waypoint | None, playing: ActionChunk | None) -> None:
        """What the tick saw and asked of the arm; ``playing`` is the policy's chunk, if it drives."""
        record = self._ring.record
        record["frame_ns"] = max((frame.t_ns for frame in seen.frames.values()), default=-1)
        if sent is not None:
            record["source"], record["command_seq"] = sent.source, sent.seq
            if playing is not None and sent.source is Source.POLICY:
                record["chunk_tick"] = playing.start_tick

    def end(self, tick: int, wake: Wake, cause: str, end_ns: int, collected_ns: int) -> None:
        """The tick is over: publish it."""
        record = self._ring.record
        record["tick"], record["collected_ns"] = tick, collected_ns
        record["deadline_ns"], record["late_ns"], record["skipped"] = wake
        record["cause"] = cause.encode()
        record["exec_ns"] = end_ns - wake.deadline_ns - wake.late_ns
        self._ring.push()
        self._clear()


def tick_reader(run_dir: Path) -> RingReader:
    """Reads what a running service's TickLog writes. Raises RingError when there is none."""
    return RingReader(run_dir / "loop.ticks", TICK)
