"""The gate: a candidate replaces the champion only on evidence.

Better on the slice it was made for, not worse on every other one, judged on paired rollouts by
e-processes, so that looking early or stopping early costs nothing; fast enough; and never by a test
too weak to tell.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from learner.config import GateConfig
from learner.eprocess import detectable, non_inferiority, power, superiority
from learner.errors import GateError
from learner.intervals import Interval, paired_difference, wilson

log = logging.getLogger(__name__)

Verdict = Literal["promote", "reject", "refuse"]

# Share of pairs assumed to flip for no reason when power is computed: half for, half against.
_CHURN = 0.10


@dataclass(frozen=True, slots=True)
class Pair:
    """One start state run by both: same seed, same slice."""

    seed: int
    slice: str
    candidate: bool
    champion: bool


@dataclass(frozen=True, slots=True)
class SliceResult:
    """What the pairs of one slice say.

    ``question`` is "better" on the target slice, else "not worse". ``evidence`` is the largest
    e-value reached, ``needed`` what it had to reach; ``power`` the chance that this many pairs
    suffice for the gate's stated effect (for "not worse": when both are equally good).
    """

    name: str
    question: Literal["better", "not worse"]
    pairs: int
    fixed: int
    broke: int
    candidate_rate: float
    candidate_interval: Interval
    champion_rate: float
    champion_interval: Interval
    difference: float
    difference_interval: Interval
    evidence: float
    needed: float
    decided_at: int | None
    power: float
    passed: bool


@dataclass(frozen=True, slots=True)
class Decision:
    """The gate's answer with its reasons. "refuse" means that the test could not have told."""

    verdict: Verdict
    reasons: tuple[str, ...]
    slices: tuple[SliceResult, ...]
    alpha: float
    attempt: int
    detectable_gain: float | None
    fixed_seeds: tuple[int, ...]
    broke_seeds: tuple[int, ...]
    latency_p99_ms: float | None

    @property
    def promoted(self) -> bool:
        """Whether the candidate may be published."""
        return self.verdict == "promote"

    def to_json(self) -> dict[str, Any]:
        """Plain values for the ledger and the manifest."""
        return asdict(self)


def pair_up(candidate: Sequence[Mapping[str, Any]], champion: Sequence[Mapping[str, Any]]) -> list[Pair]:
    """Pairs in order of seed, from two lists of ``ratchet evaluate``'s episodes.

    Raises GateError when the two were not run on the same seeds and slices.
    """
    theirs = {int(e["seed"]): e for e in champion}
    mine = {int(e["seed"]): e for e in candidate}
    if len(mine) != len(candidate) or len(theirs) != len(champion):
        raise GateError("a seed was run twice", "give each policy every seed once")
    if mine.keys() != theirs.keys():
        odd = sorted(mine.keys() ^ theirs.keys())
        raise GateError(f"seed {odd[0]} was run by one policy only", "run both on the same seeds")
    pairs = []
    for seed in sorted(mine):
        a, b = mine[seed], theirs[seed]
        if a["slice"] != b["slice"]:
            raise GateError(
                f"seed {seed} started in {a['slice']} and in {b['slice']}", "use one world for both"
            )
        pairs.append(Pair(seed, str(a["slice"]), bool(a["success"]), bool(b["success"])))
    return pairs


def spent_alpha(alpha: float, attempt: int) -> float:
    """Share of ``alpha`` for the k-th candidate against one champion: α · 6/(π²k²), which sums to α."""
    if attempt < 1:
        raise ValueError(f"attempt {attempt} is not 1 or more")
    return alpha * 6.0 / (math.pi**2 * attempt**2)


def judge(
    pairs: Sequence[Pair],
    config: GateConfig,
    *,
    attempt: int = 1,
    latency_p99_ms: float | None = None,
    checks: Mapping[str, bool] | None = None,
) -> Decision:
    """Decide on ``pairs``. ``attempt`` counts the candidates tried against this champion, from 1.

    ``checks`` are conditions that must hold besides (name → held), such as the bundle's hashes.
    Raises GateError when the target slice has no pair.
    """
    alpha = spent_alpha(config.alpha, attempt)
    names = sorted({p.slice for p in pairs})
    if config.target not in names:
        raise GateError(
            f"no pair in the target slice {config.target!r}; there are {', '.join(names) or 'none'}",
            "evaluate on seeds that reach it",
        )
    results = tuple(
        _judge_slice(name, [p for p in pairs if p.slice == name], config, alpha) for name in names
    )
    target = next(r for r in results if r.question == "better")
    smallest = detectable(target.pairs, alpha, churn=_CHURN)
    weak = [
        f"too weak on {r.name}: {r.pairs} pairs, power {r.power:.0%} (at least {config.min_power:.0%} and "
        f"{config.min_pairs} pairs needed)"
        for r in results
        if r.power < config.min_power or r.pairs < config.min_pairs
    ]
    if weak:
        found = f"less than +{smallest:.0%}" if smallest is not None else "any gain"
        weak.append(f"this gate could not reliably detect {found} at {target.pairs} pairs; run more seeds")
    failed = [_reason(r, config) for r in results if not r.passed]
    failed += [f"{name} does not hold" for name, held in (checks or {}).items() if not held]
    if latency_p99_ms is not None and latency_p99_ms > config.latency_p99_ms:
        failed.append(f"inference p99 {latency_p99_ms:.1f} ms is over {config.latency_p99_ms:.1f} ms")
    verdict: Verdict = "refuse" if weak else "reject" if failed else "promote"
    reasons = weak or failed or [_reason(r, config) for r in results]
    log.info("gate.%s alpha=%.4f pairs=%d", verdict, alpha, len(pairs))
    return Decision(
        verdict=verdict,
        reasons=tuple(reasons),
        slices=results,
        alpha=alpha,
        attempt=attempt,
        detectable_gain=smallest,
        fixed_seeds=tuple(p.seed for p in pairs if p.candidate and not p.champion),
        broke_seeds=tuple(p.seed for p in pairs if p.champion and not p.candidate),
        latency_p99_ms=latency_p99_ms,
    )


def _judge_slice(name: str, pairs: Sequence[Pair], config: GateConfig, alpha: float) -> SliceResult:
    mine, theirs = [p.candidate for p in pairs], [p.champion for p in pairs]
    outcomes = [int(a) - int(b) for a, b in zip(mine, theirs, strict=True)]
    is_target = name == config.target
    logs = superiority(outcomes) if is_target else non_inferiority(outcomes, config.margin)
    needed = -math.log(alpha)
    crossed = np.flatnonzero(logs >= needed)
    difference, interval = paired_difference(mine, theirs)
    return SliceResult(
        name=name,
        question="better" if is_target else "not worse",
        pairs=len(pairs),
        fixed=outcomes.count(1),
        broke=outcomes.count(-1),
        candidate_rate=sum(mine) / len(pairs),
        candidate_interval=wilson(sum(mine), len(pairs)),
        champion_rate=sum(theirs) / len(pairs),
        champion_interval=wilson(sum(theirs), len(pairs)),
        difference=difference,
        difference_interval=interval,
        evidence=math.exp(min(700.0, float(logs.max()))),
        needed=1.0 / alpha,
        decided_at=int(crossed[0]) + 1 if len(crossed) else None,
        power=power(
            len(pairs),
            alpha,
            gain=config.effect if is_target else 0.0,
            churn=_CHURN,
            margin=None if is_target else config.margin,
        ),
        passed=bool(len(crossed)),
    )


def _reason(r: SliceResult, config: GateConfig) -> str:
    low, high = r.difference_interval
    claim = "better" if r.question == "better" else f"not worse by {config.margin:.0%}"
    return (
        f"{'' if r.passed else 'not shown to be '}{claim} on {r.name}: {r.champion_rate:.0%} → "
        f"{r.candidate_rate:.0%} over {r.pairs} pairs (+{r.fixed}/−{r.broke}, difference {low:+.0%} to "
        f"{high:+.0%}), e-value {r.evidence:.3g} of {r.needed:.3g}"
    )
