"""Evidence that may be looked at after every pair: two e-processes.

An e-process starts at 1 and is, under its null hypothesis, a non-negative supermartingale: the
chance that it *ever* reaches 1/α is at most α (Ville 1939), whatever rule stops the test.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import betainc, betaln, logsumexp

F64 = npt.NDArray[np.float64]
Outcomes = Sequence[int] | npt.NDArray[np.int_]

_GRID = 24


def superiority(outcomes: Outcomes) -> F64:
    """log e-values (n,) after each pair against "the candidate is not better".

    ``outcomes`` are +1 where only the candidate succeeded, −1 where only the champion did, 0 where
    they agreed. Among discordant pairs the null says p ≤ ½; the likelihood ratio against ½ is mixed
    over p uniform on (½, 1]: 2^(w+l+1) · B(w+1, l+1) · P(Beta(w+1, l+1) > ½) for w wins, l losses.
    """
    d = np.asarray(outcomes)
    return log_superiority(np.cumsum(d > 0), np.cumsum(d < 0))


def log_superiority(wins: npt.NDArray[np.int_], losses: npt.NDArray[np.int_]) -> F64:
    """The mixture's logarithm for arrays of wins and losses of any shape."""
    # P(Beta(w+1, l+1) > ½) = I_½(l+1, w+1); it may underflow where the losses dominate: no evidence.
    tail = np.log(np.maximum(betainc(losses + 1, wins + 1, 0.5), np.finfo(np.float64).tiny))
    value: F64 = (wins + losses + 1) * math.log(2.0) + betaln(wins + 1, losses + 1) + tail
    return value


def non_inferiority(outcomes: Outcomes, margin: float) -> F64:
    """log e-values (n,) after each pair against "the candidate is worse by ``margin`` or more".

    Under that null E[D + margin] ≤ 0 for the pair's outcome D ∈ {−1, 0, 1}, so the capital
    Π (1 + λ(Dᵢ + margin)) of a gambler who bets a fixed λ ∈ [0, 1/(1 − margin)) cannot be expected to
    grow; the average over a grid of λ is an e-process too (Waudby-Smith & Ramdas 2024, §4).
    """
    d = np.asarray(outcomes, np.float64)
    return _mixed_capital(d[None, :], margin)[0]


def _mixed_capital(d: F64, margin: float) -> F64:
    """(S, n) outcomes → (S, n) log capital."""
    bets = np.linspace(0.0, 1.0, _GRID + 2)[1:-1] / (1.0 - margin)
    # Only three outcomes exist: count them instead of multiplying factors.
    wins, losses = np.cumsum(d > 0, axis=-1), np.cumsum(d < 0, axis=-1)
    ties = np.arange(1, d.shape[-1] + 1) - wins - losses
    log_capital = (
        wins[..., None] * np.log1p(bets * (1.0 + margin))
        + losses[..., None] * np.log1p(bets * (margin - 1.0))
        + ties[..., None] * np.log1p(bets * margin)
    )
    mixed: F64 = logsumexp(log_capital, axis=-1) - math.log(_GRID)
    return mixed


def power(
    pairs: int, alpha: float, *, gain: float, churn: float, margin: float | None, runs: int = 1000
) -> float:
    """Chance that ``pairs`` pairs suffice when the candidate truly is better by ``gain``.

    ``churn`` is the share of pairs that flip either way for no reason (half each). With a ``margin``
    the question is non-inferiority. Simulated with a fixed seed.
    """
    if pairs < 1:
        return 0.0
    rng = np.random.default_rng(20_240_501)
    win = min(1.0, max(0.0, gain) + churn / 2)
    loss = min(1.0 - win, max(0.0, -gain) + churn / 2)
    u = rng.random((runs, pairs))
    d = np.where(u < win, 1, np.where(u < win + loss, -1, 0)).astype(np.int64)
    if margin is None:
        logs = log_superiority(np.cumsum(d > 0, axis=1), np.cumsum(d < 0, axis=1))
    else:
        logs = _mixed_capital(d.astype(np.float64), margin)
    return float((logs.max(axis=1) >= -math.log(alpha)).mean())


def detectable(pairs: int, alpha: float, *, churn: float, wanted: float = 0.8) -> float | None:
    """Smallest gain (steps of 0.05) that ``pairs`` pairs find with probability ``wanted``, if any."""
    for step in range(1, 20):
        if power(pairs, alpha, gain=0.05 * step, churn=churn, margin=None, runs=400) >= wanted:
            return 0.05 * step
    return None
