"""When does a bundle on probation fail too often? A test that may be looked at after every episode.

The predecessor's failure rate is not known, only its record: f failures in n episodes. Its upper
confidence bound p̄ at level α/3 (Clopper & Pearson 1934) stands in for it. Against "the new bundle
fails with a chance of at most p̄" the likelihood ratio of any q > p̄ is a non-negative
supermartingale, and so is its average over a grid of q; the chance that it *ever* reaches 3/α is
therefore at most α/3 (Ville 1939). A second, blunt rule, so many failures in a row, catches what
breaks at once; how many is chosen so that p̄ gives such a run in a whole probation with a chance of
at most α/3. Together: a bundle that is no worse is given up with a chance of at most α, however
often one looks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

_GRID = 64
_HIGHEST_BOUND = 0.95
_PARTS = 3  # of α: the bound, the e-value, the run of failures


class ProbationConfig(BaseModel):
    """How a bundle that has just been swapped in is watched, and against what."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    episodes: int = Field(default=30, ge=0, le=10_000, description="it passes after so many; 0: no probation")
    minutes: float = Field(
        default=240.0,
        gt=0.0,
        le=100_000.0,
        description="or after this time, with half of the episodes and no more failures than are borne",
    )
    alpha: float = Field(
        default=0.05, gt=0.0, le=0.5, description="chance to give up a bundle that is no worse"
    )
    min_history: int = Field(
        default=10, ge=1, le=10_000, description="episodes of the predecessor that make a record"
    )
    assumed_failures: float = Field(
        default=0.5, gt=0.0, lt=1.0, description="failure rate that is borne when there is no such record"
    )
    in_a_row: int = Field(
        default=5,
        ge=2,
        le=100,
        description="failed episodes in a row that end it at once; more where chance alone gives such a row",
    )
    failed_inferences: int = Field(
        default=3, ge=1, le=1000, description="requests in a row without an answer that end it at once"
    )
    failure_flags: tuple[str, ...] = Field(
        default=("timeout", "stall", "disagreement", "unfamiliar"),
        max_length=64,
        description="kinds of monitors' flags that make an episode a failure",
    )


def upper_bound(failures: int, episodes: int, alpha: float) -> float:
    """Clopper and Pearson's upper limit of a rate: the p at which P(X ≤ failures) falls to ``alpha``."""
    if failures >= episodes:
        return 1.0
    low, high = failures / episodes, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _at_most(failures, episodes, middle) > alpha:
            low = middle
        else:
            high = middle
    return high


def log_e_value(failures: int, episodes: int, bound: float) -> float:
    """log of the evidence that the failure rate lies above ``bound``; 0 before the first episode.

    log of mean over q of (q/p̄)^f · ((1−q)/(1−p̄))^(n−f), q on a grid inside (p̄, 1).
    """
    fine = episodes - failures
    logs = []
    for step in range(_GRID):
        q = bound + (1.0 - bound) * (step + 0.5) / _GRID
        logs.append(failures * math.log(q / bound) + fine * math.log((1.0 - q) / (1.0 - bound)))
    return _log_sum(logs) - math.log(_GRID)


def bound_for(failures: int, episodes: int, config: ProbationConfig) -> float:
    """The failure rate a bundle is tested against, from its predecessor's record."""
    if episodes < config.min_history:
        return config.assumed_failures
    # Never at 1, where nothing could be evidence.
    return min(upper_bound(failures, episodes, config.alpha / _PARTS), _HIGHEST_BOUND)


def log_limit(config: ProbationConfig) -> float:
    """The log e-value at which a bundle is given up."""
    return math.log(_PARTS / config.alpha)


def run_chance(length: int, episodes: int, rate: float) -> float:
    """P(at least ``length`` failures in a row within ``episodes``), each failing with chance ``rate``."""
    rows = [1.0] + [0.0] * (length - 1)  # chance that the present row has that length and none was longer
    for _ in range(episodes):
        rows = [(1.0 - rate) * sum(rows), *(rate * chance for chance in rows[:-1])]
    return max(1.0 - sum(rows), 0.0)


def row_limit(bound: float, config: ProbationConfig) -> int:
    """How many failures in a row end a probation: ``in_a_row``, or more where that is too likely by chance.

    More than the probation has episodes when every run is.
    """
    length = config.in_a_row
    while length <= config.episodes and run_chance(length, config.episodes, bound) > config.alpha / _PARTS:
        length += 1
    return length


def _at_most(k: int, n: int, p: float) -> float:
    """P(X ≤ k) of a binomial distribution, 0 < p < 1."""
    if p >= 1.0:
        return 0.0
    terms = [
        math.lgamma(n + 1)
        - math.lgamma(i + 1)
        - math.lgamma(n - i + 1)
        + i * math.log(p)
        + (n - i) * math.log1p(-p)
        for i in range(k + 1)
    ]
    return math.exp(min(_log_sum(terms), 0.0))


def _log_sum(logs: Sequence[float]) -> float:
    top = max(logs)
    return top + math.log(sum(math.exp(value - top) for value in logs))
