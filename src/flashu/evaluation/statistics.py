"""Small-sample statistics of scores: intervals and paired comparisons. No randomness but the bootstrap's seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np


@dataclass(frozen=True, slots=True)
class Rate:
    """``hits`` of ``n`` with the Wilson interval [low, high]."""

    hits: int
    n: int
    low: float
    high: float

    @property
    def value(self) -> float:
        return self.hits / self.n

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def wilson(hits: int, n: int, level: float = 0.95) -> Rate:
    """The Wilson score interval of a proportion: sensible at 0 and n, where hits +- 2 sigma is not."""
    if n < 1 or not 0 <= hits <= n:
        raise ValueError(f"{hits} hits of {n} is not a proportion")
    z = NormalDist().inv_cdf((1 + level) / 2)
    p, z2 = hits / n, z * z
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    # at the edges the bound is exactly 0 or 1, which rounding would miss
    return Rate(hits, n, middle - half if hits else 0.0, middle + half if hits < n else 1.0)


@dataclass(frozen=True, slots=True)
class Paired:
    """Right with the baseline alone (``lost``), with the other alone (``won``), with both or neither (``same``).

    ``p``: exact two-sided McNemar test of lost = won.
    """

    lost: int
    won: int
    same: int
    p: float


def mcnemar(baseline: Sequence[bool], other: Sequence[bool]) -> Paired:
    """Two recipes on the same items; only the items on which they differ say anything about the difference."""
    if len(baseline) != len(other):
        raise ValueError(f"{len(baseline)} and {len(other)} results cannot be paired")
    lost = sum(a and not b for a, b in zip(baseline, other, strict=True))
    won = sum(b and not a for a, b in zip(baseline, other, strict=True))
    n = lost + won
    tail = sum(math.comb(n, k) for k in range(min(lost, won) + 1)) / 2**n
    return Paired(lost, won, len(baseline) - n, min(1.0, 2 * tail))


def bootstrap_difference(
    baseline: Sequence[float], other: Sequence[float], *, level: float = 0.95, draws: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """(mean of other - baseline, low, high): percentile bootstrap over the pairs."""
    a, b = np.asarray(baseline, float), np.asarray(other, float)
    if a.shape != b.shape or not a.size:
        raise ValueError(f"{a.size} and {b.size} results cannot be paired")
    difference = b - a
    index = np.random.default_rng(seed).integers(0, a.size, (draws, a.size))
    low, high = np.quantile(difference[index].mean(1), [(1 - level) / 2, (1 + level) / 2])
    return float(difference.mean()), float(low), float(high)


def geometric_mean(values: Sequence[float]) -> float:
    """The right mean of ratios."""
    return math.exp(math.fsum(math.log(v) for v in values) / len(values))
