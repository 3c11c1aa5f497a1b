"""Replay mixes: episodes of several selections, each with its share of every batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from learner.data import Dataset
from learner.errors import DataError
from learner.loader.sampler import Part, weighted


@dataclass(frozen=True, slots=True)
class Source:
    """The ``episodes`` that ``where`` selects; batches hold samples of them in proportion to ``weight``."""

    where: str
    weight: float
    episodes: tuple[str, ...]


def choose(selections: Sequence[tuple[float, str]], select: Callable[[str], list[str]]) -> tuple[Source, ...]:
    """One source for each (weight, SQL); an episode of several selections belongs to the first of them.

    Episodes are in the order of their names, so that a seed means one run. Raises DataError for a
    selection without an episode of its own.
    """
    taken: set[str] = set()
    sources = []
    for weight, where in selections:
        own = sorted(set(select(where)) - taken)
        if not own:
            raise DataError(f"no episode is left for {where!r}", "see `ratchet episodes ls`, or leave it out")
        taken |= set(own)
        sources.append(Source(where, weight, tuple(own)))
    return tuple(sources)


def parts_of(dataset: Dataset, sources: Sequence[Source], batch: int) -> list[Part]:
    """The parts of ``dataset``, which holds the sources' episodes in their order. Raises DataError."""
    of = {name: number for number, source in enumerate(sources) for name in source.episodes}
    sizes = [0] * len(sources)
    for name, length in zip(dataset.episodes, dataset.lengths, strict=True):
        sizes[of[name]] += length
    return weighted(sizes, [source.weight for source in sources], batch)
