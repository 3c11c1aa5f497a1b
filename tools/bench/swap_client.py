"""The arm of `ratchet bench swap`: the runtime's own policy client, asked at 30 Hz."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hal.types import Frame, JointState
from runtime.nouns import ActionChunk, Observation
from runtime.policy_client import PolicyClient
from runtime.timing import TickTimer
from tools.bench.common import quantile

PERIOD_NS = 33_333_333
_PICTURES = 4
_ANSWER_S = 60.0


@dataclass(slots=True)
class Phase:
    """What happened to the client while it lasted."""

    gaps_ms: list[float] = field(default_factory=list)
    trip_ms: list[float] = field(default_factory=list)
    exec_ms: list[float] = field(default_factory=list)
    late_ms: list[float] = field(default_factory=list)
    ticks: int = 0
    skipped: int = 0
    uncovered: int = 0
    failures: int = 0

    def figures(self) -> dict[str, Any]:
        """As the benchmark shows them."""
        return {
            "ticks": self.ticks,
            "answers": len(self.trip_ms),
            "round_trip_ms": {"p50": quantile(self.trip_ms, 50), "p99": quantile(self.trip_ms, 99)},
            "exec_ms": {"p50": quantile(self.exec_ms, 50), "p99": quantile(self.exec_ms, 99)},
            "gap_ms": {"p50": quantile(self.gaps_ms, 50), "p99": quantile(self.gaps_ms, 99),
                       "max": quantile(self.gaps_ms, 100)},
            "tick_late_ms_p99": quantile(self.late_ms, 99),
        }  # fmt: skip


class _Watched(PolicyClient):
    """Tells when each answer came."""

    def __init__(self, address: str, seen: Arm) -> None:
        super().__init__(address, 1.0, "bench swap")
        self._seen = seen

    async def infer(self, observation: Observation) -> ActionChunk:
        begin = time.perf_counter()
        chunk = await super().infer(observation)
        self._seen.came(chunk, (time.perf_counter() - begin) * 1e3)
        return chunk


class Arm:
    """Ticks at 30 Hz, asks as the control loop does, and keeps count by phase."""

    def __init__(self, address: str, size: int, chunk: int) -> None:
        self._client = _Watched(address, self)
        self._chunk = chunk
        rng = np.random.default_rng(0)
        self._pictures = rng.integers(0, 256, (_PICTURES, 2, size, size, 3), dtype=np.uint8)
        self.phases: dict[str, Phase] = {}
        self._phase: Phase | None = None
        self._last: float | None = None
        self._came = asyncio.Event()
        self._version = ""
        self._count = 0

    def begin(self, name: str) -> None:
        """What happens from here on belongs to that phase."""
        self._phase = self.phases[name] = Phase()

    def end(self) -> None:
        """Nothing counts any more."""
        self._phase = None

    async def drive(self) -> None:
        """Tick until cancelled."""
        newest: ActionChunk | None = None
        tick, failures = 0, 0
        with TickTimer(PERIOD_NS) as timer:
            while True:
                wake = await timer.next()
                tick += 1 + wake.skipped
                newest = self._client.take() or newest
                phase = self._phase
                if phase is not None:
                    phase.ticks += 1 + wake.skipped
                    phase.skipped += wake.skipped
                    phase.late_ms.append(wake.late_ns / 1e6)
                    phase.uncovered += newest is None or tick - newest.start_tick >= self._chunk
                    phase.failures += self._client.failures - failures
                failures = self._client.failures
                self._client.begin(self._observe(tick))

    def came(self, chunk: ActionChunk, trip_ms: float) -> None:
        """An answer arrived."""
        now = time.perf_counter()
        if self._phase is not None:
            if self._last is not None:
                self._phase.gaps_ms.append((now - self._last) * 1e3)
            self._phase.trip_ms.append(trip_ms)
            self._phase.exec_ms.append(chunk.exec_ms)
        self._last, self._version = now, chunk.version
        self._count += 1
        self._came.set()

    async def answered(self, more: int) -> None:
        """Return after so many more answers."""
        goal = self._count + more
        await self._until(lambda: self._count >= goal)

    async def answered_by(self, version: str) -> None:
        """Return when that version has answered."""
        await self._until(lambda: self._version == version)

    async def close(self) -> None:
        """Close the client."""
        await self._client.close()

    async def _until(self, condition: Any) -> None:
        async with asyncio.timeout(_ANSWER_S):
            while not condition():
                self._came.clear()
                await self._came.wait()

    def _observe(self, tick: int) -> Observation:
        now_ns = time.monotonic_ns()
        zeros = np.zeros(6)
        joints = JointState(
            seq=tick,
            t_ns=now_ns,
            position=zeros,
            velocity=zeros,
            effort=zeros,
            temperature=zeros,
            voltage=zeros,
            hardware_error=np.zeros(6, np.uint8),
            moving=np.zeros(6, bool),
            age_ns=np.zeros(6, np.int64),
        )
        pictures = self._pictures[tick % _PICTURES]
        frames = {
            name: Frame(name, tick, now_ns, pictures[place]) for place, name in enumerate(("front", "wrist"))
        }
        return Observation(tick=tick, t_ns=now_ns, joints=joints, goal=zeros, frames=frames)
