"""Batches made ahead by threads, handed out in order; and how long training waited for them.

Which samples a batch holds is the sampler's business, and a pure function of the batch's number. So
making batches ahead changes nothing about them, and resuming needs the number alone. Threads are
enough: decoding and copying let go of the interpreter.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Any

import numpy as np

from learner.loader.batch import Batch, Rows, Samples, Window
from learner.loader.sampler import Sampler, check_state

# Made before they are asked for. Fewer leave a core idle while the other finishes the last sample of a
# batch, or whenever somebody else wants a core for a moment: 32 instead of 16 gave a tenth more, 48 a fifth.
_AHEAD_SAMPLES = 48
_AHEAD_LEAST = 2  # batches: one that is ready, one in the making


class Loader:
    """Batches of ``samples`` as ``sampler`` says, ``ahead`` of them (by default as many as hold 48 samples)
    made before they are asked for.

    Iterating goes on without end from batch ``step``. `close` it, or use ``with``.
    """

    def __init__(
        self,
        samples: Samples,
        sampler: Sampler,
        window: Window,
        *,
        threads: int = 2,
        ahead: int | None = None,
    ) -> None:
        self.step = 0
        self.waited_s = 0.0
        self._samples = samples
        self._sampler = sampler
        self._window = window
        self._threads = threads
        self._ahead = ahead or max(_AHEAD_LEAST, -(-_AHEAD_SAMPLES // sampler.batch))
        self._pool = ThreadPoolExecutor(threads, "loader")
        self._made: list[tuple[Rows, int]] = []
        self._coming: deque[tuple[int, Rows, list[Future[None]]]] = deque()

    def batch(self, step: int) -> Batch:
        """Batch number ``step``; the ones behind it are begun. Raises DataError.

        Asked for in order they are there already. The time spent waiting adds up in ``waited_s``.
        """
        if not self._coming or self._coming[0][0] != step:
            self._abandon()
        self._begin_to(step)
        _, rows, parts = self._coming.popleft()
        began = time.perf_counter()
        wait(parts)
        self.waited_s += time.perf_counter() - began
        for part in parts:
            part.result()
        self.step = step + 1
        batch = rows.batch(self._sampler.base(step))  # holds the rows before others look for free ones
        self._begin_to(step + 1)
        return batch

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self.batch(self.step)

    def state_dict(self) -> dict[str, Any]:
        """Where iterating is: plain values."""
        return {"step": self.step, "fingerprint": self._fingerprint()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken, to the bit.

        Raises DataError for what is no state, and for that of other data, another mix or seed.
        """
        self.step = check_state(state, self._fingerprint())

    def close(self) -> None:
        """End the threads. Safe twice."""
        self._abandon()
        self._pool.shutdown()

    def _fingerprint(self) -> str:
        """Of the data and of how they are drawn."""
        return f"{self._sampler.fingerprint} {self._samples.identity}"

    def _begin_to(self, first: int) -> None:
        """Begin batches until ``ahead`` are under way, the first of them number ``first``."""
        step = self._coming[-1][0] + 1 if self._coming else first
        while len(self._coming) < self._ahead:
            indices = self._sampler.indices(step).numpy()
            rows = self._rows(len(indices))
            at = np.array_split(np.arange(len(indices)), min(self._threads, len(indices)))
            parts = [self._pool.submit(self._samples.fill, rows, some, indices[some]) for some in at]
            self._coming.append((step, rows, parts))
            step += 1

    def _rows(self, count: int) -> Rows:
        """Room for a batch: of one that nobody holds any more (fresh memory costs a fifth of decoding)."""
        for rows, alone in self._made:
            if rows.references() == alone and not any(rows is other for _, other, _ in self._coming):
                return rows
        rows = Rows.empty(count, self._samples, self._window)
        self._made.append((rows, rows.references()))
        del self._made[: -self._ahead - 2]
        return rows

    def _abandon(self) -> None:
        for _, _, parts in self._coming:
            for part in parts:
                part.cancel()
            wait(parts)
        self._coming.clear()

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
