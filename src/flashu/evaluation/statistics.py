"""Statistics of scores and of timings: intervals, paired comparisons, spreads."""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

LEVEL = 0.95
"""Of every interval."""
DRAWS = 4000
"""Bootstrap samples."""


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


@dataclass(frozen=True, slots=True)
class ItemScore:
    """The score of one item, in [0, 1]. Items of one ``cluster`` (images of a prompt, questions of a scene) are
    resampled together."""

    cluster: Hashable
    value: float


@dataclass(frozen=True, slots=True)
class Score:
    """The mean of ``n`` item scores with its 95 % interval [low, high]."""

    value: float
    n: int
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True, slots=True)
class Paired:
    """Right with the baseline alone (``lost``), with the other alone (``won``), with both or neither (``same``).

    ``p``: exact two-sided McNemar test of lost = won.
    """

    lost: int
    won: int
    same: int
    p: float


@dataclass(frozen=True, slots=True)
class Difference:
    """Other minus baseline on the same items: mean, bootstrap interval over clusters, items ``lost`` and ``won``, and
    ``p`` of the exact McNemar test (a sign test where scores are fractions)."""

    value: float
    low: float
    high: float
    lost: int
    won: int
    p: float

    @property
    def significant(self) -> bool:
        """Both tests agree; only then is a difference called one."""
        return self.p < 1 - LEVEL and not self.low <= 0 <= self.high

    def __str__(self) -> str:
        return (
            f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}], {self.lost} lost {self.won} won, p = {self.p:.2g}"
        )


@dataclass(frozen=True, slots=True)
class Spread:
    """Seconds of one call, round by round, or ratios of them: median, quartiles ``low`` and ``high``, extremes."""

    values: tuple[float, ...]
    median: float
    low: float
    high: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        low, middle, high = (
            statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else (values[0],) * 3
        )
        return cls(tuple(values), middle, low, high, min(values), max(values))

    def speedup(self, baseline: Spread) -> Spread:
        """How many times faster than ``baseline``, each round against its own: a busy moment slows both."""
        return Spread.of([slow / own for slow, own in zip(baseline.values, self.values, strict=True)])


def wilson(hits: int, n: int) -> Rate:
    """The Wilson score interval of a proportion: sensible at 0 and n, where hits +- 2 sigma is not."""
    if n < 1 or not 0 <= hits <= n:
        raise ValueError(f"{hits} hits of {n} is not a proportion")
    return Rate(hits, n, *wilson_bounds(hits / n, n))


def wilson_bounds(p: float, n: float) -> tuple[float, float]:
    """Wilson's interval of a mean ``p`` in [0, 1] of ``n`` (effective, so any positive number) items."""
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(max(p * (1 - p), 0) / n + z * z / (4 * n * n))
    # at the edges the bound is exactly 0 or 1, which rounding would miss
    return (max(0.0, middle - half) if p > 0 else 0.0), (min(1.0, middle + half) if p < 1 else 1.0)


def mean_score(columns: Sequence[Sequence[ItemScore]]) -> Score:
    """The mean of the columns' means: Wilson's interval at the effective sample size p(1-p) / Var, where the variance
    is that between clusters (so four images of a prompt count as four only if they err independently)."""
    means, variances = zip(*map(_mean_and_variance, columns), strict=True)
    n = sum(map(len, columns))
    p = math.fsum(means) / len(columns)
    variance = math.fsum(variances) / len(columns) ** 2
    effective = p * (1 - p) / variance if variance else float(n)
    if all(item.value in (0, 1) for column in columns for item in column):
        effective = min(effective, float(n))
    return Score(p, n, *wilson_bounds(p, max(effective, 1.0)))


def difference(pairs: Sequence[tuple[Sequence[ItemScore], Sequence[ItemScore]]], seed: int = 0) -> Difference:
    """Other minus baseline for pairs of (baseline, other) columns that count alike. Clusters are resampled within each
    column."""
    rng = np.random.default_rng(seed)
    value, drawn, clusters = 0.0, np.zeros(DRAWS), 0
    better: list[bool] = []
    worse: list[bool] = []
    for baseline, other in pairs:
        if [item.cluster for item in baseline] != [item.cluster for item in other]:
            raise ValueError("two recipes can be compared on the same items only")
        change = [ItemScore(a.cluster, b.value - a.value) for a, b in zip(baseline, other, strict=True)]
        sums, sizes = _by_cluster(change)
        value += float(sums.sum() / sizes.sum()) / len(pairs)
        clusters += len(sums)
        index = rng.integers(0, len(sums), (DRAWS, len(sums)))
        drawn += sums[index].sum(1) / sizes[index].sum(1) / len(pairs)
        worse += [item.value < 0 for item in change]
        better += [item.value > 0 for item in change]
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    paired = mcnemar(worse, better)
    if not paired.lost + paired.won:  # no change seen in n clusters: the rule of three bounds what may be there
        low, high = -3 / clusters, 3 / clusters
    return Difference(value, float(low), float(high), paired.lost, paired.won, paired.p)


def mcnemar(baseline: Sequence[bool], other: Sequence[bool]) -> Paired:
    """Two recipes on the same items; only the items on which they differ say anything about the difference."""
    if len(baseline) != len(other):
        raise ValueError(f"{len(baseline)} and {len(other)} results cannot be paired")
    lost = sum(a and not b for a, b in zip(baseline, other, strict=True))
    won = sum(b and not a for a, b in zip(baseline, other, strict=True))
    n = lost + won
    tail = sum(math.comb(n, k) for k in range(min(lost, won) + 1)) / 2**n
    return Paired(lost, won, len(baseline) - n, min(1.0, 2 * tail))


def _mean_and_variance(items: Sequence[ItemScore]) -> tuple[float, float]:
    """The mean, and the variance of that mean, linearised for clusters of unequal size."""
    if not items:
        raise ValueError("a score needs at least one item")
    sums, sizes = _by_cluster(items)
    p = float(sums.sum() / sizes.sum())
    if len(sums) == 1:
        return p, p * (1 - p)
    residual = sums - p * sizes
    return p, float(len(sums) / (len(sums) - 1) * (residual**2).sum() / sizes.sum() ** 2)


def _by_cluster(items: Sequence[ItemScore]) -> tuple[np.ndarray, np.ndarray]:
    """Sum of the scores and their number for each cluster, in order of appearance."""
    place = {name: k for k, name in enumerate(dict.fromkeys(item.cluster for item in items))}
    sums, sizes = np.zeros(len(place)), np.zeros(len(place))
    for item in items:
        sums[place[item.cluster]] += item.value
        sizes[place[item.cluster]] += 1
    return sums, sizes
