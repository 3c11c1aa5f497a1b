"""Which steps make up a batch: a pure function of (seed, number of the batch).

Nothing has to be remembered to go on where one left off, in the middle of an epoch or anywhere else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from learner.errors import DataError

I64 = npt.NDArray[np.int64]

_DENOMINATOR = 1000
_STEPS = 1 << 40  # of a state: what comes after fits into 64 bits whatever the batch


@dataclass(frozen=True, slots=True)
class Part:
    """Steps [first, first + size) of a data set, of which ``count`` go into every batch.

    A ``count`` with a fraction (thousandths) means that many on average: batches then hold one more or
    one less of the part.
    """

    first: int
    size: int
    count: float


class Sampler:
    """Batches out of several parts, each gone through in a fresh permutation every epoch.

    Of ``world`` processes that train together, this is number ``rank``: together they draw exactly the
    batches that one process would. Raises DataError for an empty part, for counts that do not add up
    to whole batches, and when ``world`` does not divide them.
    """

    def __init__(self, parts: Sequence[Part], seed: int, *, rank: int = 0, world: int = 1) -> None:
        counts = [Fraction(round(p.count * _DENOMINATOR), _DENOMINATOR) for p in parts]
        if not parts or any(p.size < 1 or c <= 0 for p, c in zip(parts, counts, strict=True)):
            raise DataError("a part of the training mix is empty", "select more episodes")
        total = sum(counts)
        if total.denominator != 1 or total % world or not 0 <= rank < world:
            raise DataError(
                f"batches of {float(total):g} samples cannot be shared by {world} processes",
                "choose a batch size that can",
            )
        self._parts = tuple(parts)
        self._seed = seed
        self._rank, self._world = rank, world
        self._schedule = _schedule(counts)
        self._before = np.concatenate([np.zeros((1, len(parts)), np.int64), np.cumsum(self._schedule, 0)])
        self._orders: dict[tuple[int, int], I64] = {}
        self.batch = int(total) // world
        described = [(p.first, p.size, str(c)) for p, c in zip(parts, counts, strict=True)]
        self.fingerprint = hashlib.sha256(json.dumps([described, seed]).encode()).hexdigest()

    def indices(self, step: int) -> torch.Tensor:
        """int64 (B,) steps of batch ``step``, the first part first."""
        rows = [self._draw(number, part, step) for number, part in enumerate(self._parts)]
        return torch.from_numpy(np.concatenate(rows)[self._rank :: self._world])

    def base(self, step: int = 0) -> torch.Tensor:
        """bool (B,): True for the samples of the first part in batch ``step``."""
        count = self._schedule[step % len(self._schedule), 0]
        mine = np.arange(self.batch * self._world)[self._rank :: self._world]
        return torch.from_numpy(mine < count)

    def epoch(self, step: int) -> float:
        """How often the first part has been gone through before batch ``step``."""
        return self._drawn(0, step) / self._parts[0].size

    def __iter__(self) -> Iterator[list[int]]:
        """Batches from the first on, without end: a ``batch_sampler`` for torch's DataLoader."""
        step = 0
        while True:
            yield self.indices(step).tolist()
            step += 1

    def _drawn(self, number: int, step: int) -> int:
        """Samples of part ``number`` in all batches before ``step``."""
        rounds, rest = divmod(step, len(self._schedule))
        return int(rounds * self._before[-1, number] + self._before[rest, number])

    def _draw(self, number: int, part: Part, step: int) -> I64:
        at = np.arange(self._drawn(number, step), self._drawn(number, step + 1))
        epochs, rows = at // part.size, at % part.size
        chosen = np.empty(len(at), np.int64)
        for epoch in np.unique(epochs):
            inside = epochs == epoch
            chosen[inside] = self._order(number, part, int(epoch))[rows[inside]]
        return part.first + chosen

    def _order(self, number: int, part: Part, epoch: int) -> I64:
        key = (number, epoch)
        order = self._orders.get(key)
        if order is None:
            for old in [k for k in list(self._orders) if k[0] == number and k[1] < epoch - 1]:
                self._orders.pop(old, None)
            order = np.random.default_rng([self._seed, number, epoch]).permutation(part.size)
            self._orders[key] = order
        return order


def _schedule(counts: Sequence[Fraction]) -> I64:
    """Samples of each part in successive batches, int64 (period, parts), whole: on average ``counts``.

    Every batch gets what is due by then, rounded down; what is missing to a whole batch goes to the
    parts that are furthest behind. After one period nobody is behind.
    """
    period = int(np.lcm.reduce([c.denominator for c in counts]))
    total = int(sum(counts))
    given = [0] * len(counts)
    rows = np.empty((period, len(counts)), np.int64)
    for batch in range(1, period + 1):
        behind = [c * batch - g for c, g in zip(counts, given, strict=True)]
        row = [max(0, int(b // 1)) for b in behind]
        while sum(row) != total:
            ahead = [(r - b, i) for i, (r, b) in enumerate(zip(row, behind, strict=True))]
            if sum(row) < total:
                row[min(ahead)[1]] += 1
            else:
                row[max(a for a in ahead if row[a[1]])[1]] -= 1
        given = [g + r for g, r in zip(given, row, strict=True)]
        rows[batch - 1] = row
    return rows


def weighted(sizes: Sequence[int], weights: Sequence[float], batch: int) -> list[Part]:
    """Parts that lie one behind the other, each a share of the batch in proportion to its weight.

    Shares are rounded to a thousandth of a sample a batch. Raises DataError for a weight that is not
    positive.
    """
    if len(sizes) != len(weights) or any(not w > 0 for w in weights):
        raise DataError(
            f"the weights {list(weights)} of the mix are not all positive", "leave the others out"
        )
    units = batch * _DENOMINATOR
    edges = np.round(np.cumsum([0.0, *weights]) / sum(weights) * units).astype(np.int64)
    firsts = np.cumsum([0, *sizes])
    return [
        Part(int(first), size, float(Fraction(int(b - a), _DENOMINATOR)))
        for first, size, a, b in zip(firsts, sizes, edges, edges[1:], strict=False)
    ]


def check_state(state: Any, fingerprint: str) -> int:
    """The step in a state. Raises DataError when it is none, or belongs to another loader."""
    step = state.get("step") if isinstance(state, Mapping) else None
    if type(step) is not int or not 0 <= step <= _STEPS:
        raise DataError("that is no state of a loader", "resume from what its state_dict() gave")
    if state.get("fingerprint") != fingerprint:
        raise DataError("the state is that of another loader", "resume with the same data, mix and seed")
    return step
