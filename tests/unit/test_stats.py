"""Statistics against scipy, values worked out by hand and the literature."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch

from flashu.evaluation.scores import Mark, Sheet
from flashu.evaluation.statistics import bootstrap_difference, geometric_mean, mcnemar, wilson
from flashu.inference.calibrate.attention import spearman


def test_wilson_against_the_textbook() -> None:
    rate = wilson(8, 10)  # Wilson 1927 by hand: z = 1.96, centre (0.8 + 0.19207) / 1.38415
    assert rate.value == 0.8
    assert rate.low == pytest.approx(0.4902, abs=1e-4)
    assert rate.high == pytest.approx(0.9433, abs=1e-4)


def test_wilson_at_the_edges() -> None:
    z2 = 1.959963984540054**2
    assert wilson(0, 10).low == 0
    assert wilson(0, 10).high == pytest.approx(z2 / (10 + z2))
    assert wilson(10, 10).high == pytest.approx(1)
    assert wilson(10, 10).low == pytest.approx(10 / (10 + z2))


@pytest.mark.parametrize(("hits", "n"), [(0, 0), (3, 2), (-1, 4)])
def test_wilson_refuses_what_is_no_proportion(hits: int, n: int) -> None:
    with pytest.raises(ValueError, match="not a proportion"):
        wilson(hits, n)


def test_mcnemar_counts_only_the_changed() -> None:
    baseline = [True] * 6 + [False] * 2 + [True] * 10
    other = [False] * 6 + [True] * 2 + [True] * 10
    paired = mcnemar(baseline, other)
    assert (paired.lost, paired.won, paired.same) == (6, 2, 10)
    assert paired.p == pytest.approx(2 * (1 + 8 + 28) / 256)  # C(8,0) + C(8,1) + C(8,2) of 2^8
    assert mcnemar([True, False], [True, False]).p == 1


@pytest.mark.parametrize(("lost", "won"), [(0, 1), (3, 3), (11, 2), (1, 30), (40, 25)])
def test_mcnemar_is_scipys_binomial_test(lost: int, won: int) -> None:
    baseline, other = [True] * lost + [False] * won, [False] * lost + [True] * won
    assert mcnemar(baseline, other).p == pytest.approx(scipy.stats.binomtest(lost, lost + won).pvalue)


@pytest.mark.parametrize(("hits", "n"), [(0, 7), (1, 3), (64, 96), (96, 96)])
def test_wilson_is_scipys(hits: int, n: int) -> None:
    rate, theirs = wilson(hits, n), scipy.stats.binomtest(hits, n).proportion_ci(0.95, "wilson")
    assert (rate.low, rate.high) == pytest.approx((theirs.low, theirs.high))


def test_bootstrap_is_scipys_percentile_one() -> None:
    rng = np.random.default_rng(0)
    baseline, other = rng.random(80), rng.random(80) + 0.1
    mean, low, high = bootstrap_difference(list(baseline), list(other))
    theirs = scipy.stats.bootstrap((other - baseline,), np.mean, method="percentile", rng=1).confidence_interval
    assert mean == pytest.approx((other - baseline).mean())
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_paired_scores_agree_with_scipy() -> None:
    """The difference of two sheets, every item its own cluster; the correlation of ranks."""
    rng = np.random.default_rng(3)
    right = [rng.random(120) < p for p in (0.9, 0.75)]
    vanilla, other = (Sheet({"a": [Mark(k, float(ok)) for k, ok in enumerate(r)]}, ("a",)) for r in right)
    found = other.against(vanilla)
    change = right[1].astype(float) - right[0]
    theirs = scipy.stats.bootstrap((change,), np.mean, method="percentile", rng=1).confidence_interval
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)
    assert found.p == pytest.approx(scipy.stats.binomtest(found.lost, found.lost + found.won).pvalue)
    x, y = rng.random(50), rng.random(50)
    assert spearman(torch.tensor(x), torch.tensor(y)) == pytest.approx(scipy.stats.spearmanr(x, y).statistic)


def test_mcnemar_needs_pairs() -> None:
    with pytest.raises(ValueError, match="paired"):
        mcnemar([True], [True, False])


def test_bootstrap_of_equal_differences_has_no_width() -> None:
    assert bootstrap_difference([0.0, 1.0], [0.5, 1.5]) == (0.5, 0.5, 0.5)


def test_bootstrap_covers_the_mean_and_repeats() -> None:
    baseline, other = [0.0] * 20, [1.0] * 10 + [0.0] * 10
    mean, low, high = bootstrap_difference(baseline, other)
    assert mean == 0.5
    spread = 1.96 * math.sqrt(0.25 / 20)
    assert low == pytest.approx(0.5 - spread, abs=0.06)
    assert high == pytest.approx(0.5 + spread, abs=0.06)
    assert bootstrap_difference(baseline, other) == (mean, low, high)


def test_geometric_mean_of_ratios() -> None:
    assert geometric_mean([2, 0.5]) == pytest.approx(1)
    assert geometric_mean([1, 8]) == pytest.approx(math.sqrt(8))
