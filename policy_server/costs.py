"""What a batch costs on this machine, and whether computing several observations together pays at all.

It pays on a machine with idle arithmetic units, a GPU above all; two CPU cores are busy with one
observation already, and there a batch only makes its first request wait for its last. So it is
measured when a bundle is loaded, and kept up to date by every run.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping

import numpy as np

from policies.session import PolicySession
from policy_server.backends import FAILURES

#: A size is used when an observation in it costs at most this share of one in the next smaller size.
WORTH_IT = 0.9
_RECENT = 32
_SMOOTHING = 0.2


class BatchCosts:
    """Expected time of a run by batch size, kept as a multiple of a run of one; only measured sizes are run.

    A backend that compiles for each new shape would otherwise do so under a moving arm.
    """

    def __init__(self, measured_ms: Mapping[int, float] | None = None) -> None:
        """``measured_ms`` by size, size 1 among them; None: nothing is known, one at a time is safe."""
        self.measured_ms = dict(sorted((measured_ms or {1: 0.0}).items()))
        self.sizes = _worth_it(self.measured_ms)
        one = self.measured_ms[1]
        self._one_ms = one
        self._times_one = {size: self.measured_ms[size] / one if one else 1.0 for size in self.sizes}
        # Of what was measured while loading, behind others, only the ratios can be relied on.
        self._recent = {size: deque[float](maxlen=_RECENT) for size in self.sizes}
        self.runs = dict.fromkeys(self.sizes, 0)

    @property
    def limit(self) -> int:
        """The largest size that pays."""
        return self.sizes[-1]

    def fit(self, waiting: int) -> int:
        """The size, of those that so many requests fill, at which an observation costs least by now."""
        sizes = [size for size in self.sizes if size <= waiting]
        return min(sizes, key=lambda size: (self._times_one[size] / size, -size), default=1)

    def expected_ns(self, size: int) -> int:
        """Time a run of that size will probably take; 0 while nothing is known."""
        return round(self._one_ms * self._times_one[size] * 1e6)

    def fastest_ns(self) -> int:
        """The quickest that one observation was computed lately: no run will beat it. 0 before the first."""
        return round(min(self._recent[1], default=0.0) * 1e6)

    def ran(self, size: int, exec_ms: float) -> None:
        """Learn from a run."""
        if size > 1:
            self._times_one[size] += _SMOOTHING * (exec_ms / self._one_ms - self._times_one[size])
        elif self.runs[1] == 0:
            self._one_ms = exec_ms
        else:
            self._one_ms += _SMOOTHING * (exec_ms - self._one_ms)
        self._recent[size].append(exec_ms)
        self.runs[size] += 1

    def describe(self) -> str:
        """In one line what was measured and what follows."""
        shown = ", ".join(f"{size}: {ms:.1f} ms" for size, ms in self.measured_ms.items())
        if self.limit == 1:
            return f"batches of {shown}; batching does not pay here, one observation at a time"
        return f"batches of {shown}; up to {self.limit} together"


def measure(session: PolicySession, max_batch: int, runs: int) -> BatchCosts:
    """Time batches of 1, 2, 4, … up to ``max_batch`` on zeros, as long as doubling pays.

    A session that takes one observation at a time gives costs of that only. Raises what it fails with
    on a single one.
    """
    measured = {1: _time(session, 1, runs)}
    size = 2
    while size <= max_batch:
        try:
            measured[size] = _time(session, size, runs)
        except FAILURES:
            break
        if size not in _worth_it(measured):
            break
        size *= 2
    return BatchCosts(measured)


def _time(session: PolicySession, size: int, runs: int) -> float:
    manifest = session.manifest
    state = np.zeros((size, len(manifest.state_names)), dtype=np.float32)
    images = {c.name: np.zeros((size, c.height, c.width, 3), dtype=np.uint8) for c in manifest.cameras}
    times = []
    for _ in range(runs + 1):
        begin = time.perf_counter()
        result = session.infer(state, images)
        times.append((time.perf_counter() - begin) * 1e3)
        if len(result.actions) != size:
            raise ValueError(f"{len(result.actions)} answers to {size} observations")
    return min(times)  # whatever else the machine did meanwhile is no part of the cost


def _worth_it(measured_ms: Mapping[int, float]) -> tuple[int, ...]:
    """Sizes from 1 on, each of which makes an observation cheaper than the one before."""
    sizes = [1]
    for size, ms in measured_ms.items():
        if size > 1 and ms / size <= WORTH_IT * measured_ms[sizes[-1]] / sizes[-1]:
            sizes.append(size)
    return tuple(sizes)
