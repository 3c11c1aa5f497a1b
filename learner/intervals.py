"""Confidence intervals for success rates and for the difference of two paired ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy.stats import norm

Interval = tuple[float, float]


def wilson(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion (Wilson 1927). (0, 1) when there is no trial."""
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes of {trials} trials")
    if trials == 0:
        return 0.0, 1.0
    z = float(norm.ppf(0.5 + confidence / 2))
    p, q = successes / trials, z * z / trials
    centre = (p + q / 2) / (1 + q)
    half = math.sqrt(p * (1 - p) * q + q * q / 4) / (1 + q)
    # At the ends the bound is exact; the square root leaves it a rounding error away.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == trials else min(1.0, centre + half)
    return low, high


def paired_difference(
    first: Sequence[bool], second: Sequence[bool], confidence: float = 0.95
) -> tuple[float, Interval]:
    """(rate of ``first`` − rate of ``second``, its interval) over pairs.

    Square-and-add of Wilson limits with the correlation's continuity correction: method 10 of
    Newcombe 1998, Statistics in Medicine 17, 2635–2650. (0, (−1, 1)) when there is no pair.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} results are not pairs")
    n = len(first)
    if n == 0:
        return 0.0, (-1.0, 1.0)
    both = sum(a and b for a, b in zip(first, second, strict=True))
    only_a, only_b = sum(first) - both, sum(second) - both
    neither = n - both - only_a - only_b
    p1, p2 = sum(first) / n, sum(second) / n
    l1, u1 = wilson(sum(first), n, confidence)
    l2, u2 = wilson(sum(second), n, confidence)
    phi = _phi(both, only_a, only_b, neither)
    theta = p1 - p2
    down = (p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2
    up = (u1 - p1) ** 2 - 2 * phi * (u1 - p1) * (p2 - l2) + (p2 - l2) ** 2
    low, high = theta - math.sqrt(max(0.0, down)), theta + math.sqrt(max(0.0, up))
    return theta, (max(-1.0, low), min(1.0, high))


def _phi(both: int, only_a: int, only_b: int, neither: int) -> float:
    product = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    if product == 0:
        return 0.0
    n = both + only_a + only_b + neither
    cross = both * neither - only_a * only_b
    if cross > 0:
        cross = max(0, cross - n // 2)
    return cross / math.sqrt(product)
