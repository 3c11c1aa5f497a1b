"""A slow and lossy way to the policy server, in lockstep: answers come some ticks late, or never.

It asks as the real-time client does: ``runtime.pace`` says when.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from runtime.nouns import ActionChunk
from runtime.pace import Pace


@dataclass(frozen=True, slots=True)
class LineFaults:
    """``delay_ticks`` added to every answer, the share of requests ``lost``, and the client's time-out.

    Delays are whole control ticks: an answer that came between two ticks would wait for the second one.
    """

    delay_ticks: int = 0
    lost: float = 0.0
    timeout_ticks: int = 15


class LockstepLine:
    """One arm's requests under way. Same seed, same losses."""

    def __init__(self, faults: LineFaults, seed: int, period_s: float) -> None:
        self._faults = faults
        self._period_s = period_s
        self._rng = np.random.default_rng((seed, 0x11E))
        self._under_way: list[tuple[int, ActionChunk | None]] = []
        self.pace = Pace(period_s, faults.timeout_ticks * period_s)
        self.sent = 0
        self.lost = 0

    def ready(self, tick: int) -> bool:
        """Whether a request may be sent now."""
        since = tick - self._under_way[-1][0] if self._under_way else 0
        return self.pace.may_ask(len(self._under_way), since * self._period_s)

    def send(self, chunk: ActionChunk, tick: int) -> None:
        """Ask at ``tick``; ``chunk`` is what will be answered, unless it is lost."""
        lost = self._faults.lost > 0.0 and bool(self._rng.random() < self._faults.lost)
        self.sent += 1
        self.lost += lost
        self._under_way.append((tick, None if lost else chunk))

    def receive(self, tick: int) -> ActionChunk | None:
        """The newest answer that is here at ``tick``; the requests before it are given up."""
        faults = self._faults
        for number in reversed(range(len(self._under_way))):
            sent, chunk = self._under_way[number]
            if chunk is not None and tick - sent >= faults.delay_ticks:
                del self._under_way[: number + 1]
                self.pace.answered((tick - sent) * self._period_s)
                return chunk
        self._under_way = [row for row in self._under_way if tick - row[0] < faults.timeout_ticks]
        return None
