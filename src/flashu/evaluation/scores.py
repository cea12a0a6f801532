"""Scores of a benchmark with intervals, and paired differences; prompts, not images, are the independent units."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from flashu.evaluation.statistics import mcnemar

LEVEL = 0.95
DRAWS = 4000


@dataclass(frozen=True, slots=True)
class Mark:
    """What one item earned, in [0, 1]. Items of one ``cluster`` (images of a prompt, questions of a scene) go
    together when they are resampled."""

    cluster: Hashable
    value: float


@dataclass(frozen=True, slots=True)
class Score:
    """The mean of ``n`` marks with its 95 % interval [low, high]."""

    value: float
    n: int
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True, slots=True)
class Difference:
    """Other minus baseline on the same items: mean, bootstrap interval over clusters, items ``lost`` and ``won``, and
    ``p`` of the exact McNemar test (a sign test where marks are fractions)."""

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


@dataclass(frozen=True)
class Sheet:
    """All marks of one recipe on one benchmark, by column, in an order that every recipe shares.

    ``parts``: the columns whose mean is the overall score, each counting alike.
    """

    marks: Mapping[str, Sequence[Mark]]
    parts: tuple[str, ...]

    @property
    def overall(self) -> Score:
        """The mean of the parts' means."""
        return combined([self.marks[p] for p in self.parts])

    def scores(self) -> dict[str, Score]:
        return {column: combined([marks]) for column, marks in self.marks.items()} | {"Overall": self.overall}

    def against(self, baseline: Sheet) -> Difference:
        """The difference of the overall score from the baseline's."""
        return difference([(baseline.marks[p], self.marks[p]) for p in self.parts])

    def differences(self, baseline: Sheet) -> dict[str, Difference]:
        each = {column: difference([(baseline.marks[column], marks)]) for column, marks in self.marks.items()}
        return each | {"Overall": self.against(baseline)}

    def to_dict(self, baseline: Sheet | None = None) -> dict[str, Any]:
        found: dict[str, Any] = {"scores": {c: asdict(s) for c, s in self.scores().items()}}
        if baseline is not None:
            found["differences"] = {
                c: asdict(d) | {"significant": d.significant} for c, d in self.differences(baseline).items()
            }
        return found


def combined(columns: Sequence[Sequence[Mark]]) -> Score:
    """The mean of the columns' means: Wilson's interval at the effective sample size p(1-p) / Var, where the variance
    is that between clusters (so four images of a prompt count as four only if they err independently)."""
    means, variances = zip(*(moments(marks) for marks in columns), strict=True)
    n = sum(len(marks) for marks in columns)
    p = math.fsum(means) / len(columns)
    variance = math.fsum(variances) / len(columns) ** 2
    effective = p * (1 - p) / variance if variance else float(n)
    if all(mark.value in (0, 1) for marks in columns for mark in marks):
        effective = min(effective, float(n))
    low, high = wilson_bounds(p, max(effective, 1.0))
    return Score(p, n, low, high)


def moments(marks: Sequence[Mark]) -> tuple[float, float]:
    """Mean of the marks and the variance of that mean, linearised for clusters of unequal size."""
    if not marks:
        raise ValueError("a score needs at least one item")
    sums, sizes, _ = by_cluster(marks)
    p = float(sums.sum() / sizes.sum())
    if len(sums) == 1:
        return p, p * (1 - p)
    residual = sums - p * sizes
    return p, float(len(sums) / (len(sums) - 1) * (residual**2).sum() / sizes.sum() ** 2)


def by_cluster(marks: Sequence[Mark]) -> tuple[np.ndarray, np.ndarray, list[Hashable]]:
    """(sum of marks, number of marks, name) of each cluster, in order of appearance."""
    place = {name: k for k, name in enumerate(dict.fromkeys(mark.cluster for mark in marks))}
    sums, sizes = np.zeros(len(place)), np.zeros(len(place))
    for mark in marks:
        sums[place[mark.cluster]] += mark.value
        sizes[place[mark.cluster]] += 1
    return sums, sizes, list(place)


def wilson_bounds(p: float, n: float) -> tuple[float, float]:
    """Wilson's interval of a mean ``p`` in [0, 1] of ``n`` (effective, so any positive number) items."""
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(max(p * (1 - p), 0) / n + z * z / (4 * n * n))
    return (max(0.0, middle - half) if p > 0 else 0.0), (min(1.0, middle + half) if p < 1 else 1.0)


def difference(pairs: Sequence[tuple[Sequence[Mark], Sequence[Mark]]], seed: int = 0) -> Difference:
    """Other minus baseline, the columns counting alike. Clusters are resampled within each column."""
    rng = np.random.default_rng(seed)
    value, drawn, clusters = 0.0, np.zeros(DRAWS), 0
    better: list[bool] = []
    worse: list[bool] = []
    for baseline, other in pairs:
        if [m.cluster for m in baseline] != [m.cluster for m in other]:
            raise ValueError("two recipes can be compared on the same items only")
        change = [Mark(a.cluster, b.value - a.value) for a, b in zip(baseline, other, strict=True)]
        sums, sizes, _ = by_cluster(change)
        value += float(sums.sum() / sizes.sum()) / len(pairs)
        clusters += len(sums)
        index = rng.integers(0, len(sums), (DRAWS, len(sums)))
        drawn += sums[index].sum(1) / sizes[index].sum(1) / len(pairs)
        worse += [mark.value < 0 for mark in change]
        better += [mark.value > 0 for mark in change]
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    paired = mcnemar(worse, better)
    if not paired.lost + paired.won:  # no change seen in n clusters: the rule of three bounds what may be there
        low, high = -3 / clusters, 3 / clusters
    return Difference(value, float(low), float(high), paired.lost, paired.won, paired.p)


def pooled(pairs: Sequence[tuple[Sheet, Sheet]]) -> Difference:
    """(baseline, other) several times over on the same items, an item's marks averaged before they are compared."""
    baseline, other = (averaged([pair[side] for pair in pairs]) for side in (0, 1))
    return other.against(baseline)


def averaged(sheets: Sequence[Sheet]) -> Sheet:
    """The sheet of every item's mean mark."""
    marks: dict[str, list[Mark]] = {}
    for part in sheets[0].parts:
        columns = zip(*(s.marks[part] for s in sheets), strict=True)
        marks[part] = [Mark(same[0].cluster, sum(m.value for m in same) / len(same)) for same in columns]
    return Sheet(marks, sheets[0].parts)
