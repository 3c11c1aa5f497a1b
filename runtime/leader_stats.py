"""How well the follower keeps up with the leader arm: updates a second, and their latency."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from runtime.bus_records import BusSample
from runtime.loop_stats import Samples
from runtime.streams import NS

_WINDOW_TICKS = 60  # two seconds: a rate that follows what happens, and still counts


class LeaderStats:
    """Figures of the present, or else the last, stretch that the leader arm drove directly."""

    def __init__(self) -> None:
        self.latency_ms = Samples()
        self._seen: deque[tuple[int, int]] = deque(maxlen=_WINDOW_TICKS)

    def begin(self) -> None:
        """The leader begins to drive."""
        self.latency_ms = Samples()
        self._seen.clear()

    def add(self, samples: Iterable[BusSample]) -> None:
        """Take what the follower's bus process published since the last call."""
        newest = None
        for newest in samples:
            if newest.leader_latency_ns >= 0:
                self.latency_ms.add(newest.leader_latency_ns / 1e6)
        if newest is not None:
            self._seen.append((newest.joints.t_ns, newest.leader_updates))

    @property
    def hz(self) -> float:
        """Leader samples that became goals, each second, over the last two; 0 before there are any."""
        if len(self._seen) < 2:
            return 0.0
        (began_ns, before), (ended_ns, after) = self._seen[0], self._seen[-1]
        return (after - before) * NS / (ended_ns - began_ns) if ended_ns > began_ns else 0.0
