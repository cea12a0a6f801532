"""Statistics against scipy, values worked out by hand and the literature."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from flashu.evaluation.score_table import ScoreTable, averaged, pooled
from flashu.evaluation.statistics import ItemScore, difference, mcnemar, mean_score, wilson, wilson_bounds


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


def columns(*values: float, size: int = 1) -> list[ItemScore]:
    """Items of clusters of ``size``."""
    return [ItemScore(k // size, float(v)) for k, v in enumerate(values)]


def test_paired_differences_agree_with_scipy() -> None:
    """Every item its own cluster."""
    rng = np.random.default_rng(3)
    first, second = (rng.random(120) < p for p in (0.9, 0.75))
    found = difference([(columns(*first), columns(*second))])
    change = second.astype(float) - first
    theirs = scipy.stats.bootstrap((change,), np.mean, method="percentile", rng=1).confidence_interval
    assert found.value == pytest.approx(change.mean())
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)
    assert found.p == pytest.approx(scipy.stats.binomtest(found.lost, found.lost + found.won).pvalue)


def test_equal_changes_have_no_width_and_repeat() -> None:
    found = difference([(columns(0, 0.5), columns(0.5, 1))])
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)
    baseline, other = columns(*[0] * 20), columns(*[1] * 10, *[0] * 10)
    again = difference([(baseline, other)])
    spread = 1.96 * math.sqrt(0.25 / 20)
    assert (again.low, again.high) == pytest.approx((0.5 - spread, 0.5 + spread), abs=0.06)
    assert difference([(baseline, other)]) == again


def test_columns_count_alike_whatever_their_length() -> None:
    found = difference([(columns(0), columns(1)), (columns(0, 0, 0), columns(0, 0, 0))])
    assert found.value == 0.5
    assert mean_score([columns(1), columns(0, 0, 0)]).value == 0.5


def test_mcnemar_needs_pairs() -> None:
    with pytest.raises(ValueError, match="paired"):
        mcnemar([True], [True, False])


def test_scores_of_independent_items_are_wilsons() -> None:
    score, rate = mean_score([columns(*[1] * 8, 0, 0)]), wilson(8, 10)
    assert score.value == rate.value
    # the variance between ten clusters of one is p(1-p)/9
    assert (score.low, score.high) == pytest.approx(wilson_bounds(0.8, 9))
    assert wilson_bounds(0.8, 10) == (rate.low, rate.high)
    with pytest.raises(ValueError, match="at least one item"):
        mean_score([[]])


def test_images_that_err_together_count_as_one() -> None:
    values = [1] * 32 + [0] * 8
    wide, narrow = mean_score([columns(*values, size=4)]), mean_score([columns(*values)])
    assert wide.value == narrow.value == 0.8
    assert (wide.low, wide.high) == pytest.approx(wilson_bounds(0.8, 9))
    assert wide.high - wide.low > narrow.high - narrow.low


def table(*values: float) -> ScoreTable:
    return ScoreTable({"a": columns(*values)}, ("a",))


def test_differences_are_paired() -> None:
    base = table(*[1] * 60)
    found = table(*[0] * 12, *[1] * 48).against(base)
    assert (found.lost, found.won) == (12, 0)
    assert found.value == pytest.approx(-0.2)
    assert found.p == pytest.approx(2 / 2**12)
    assert found.significant
    same = base.against(base)
    assert (same.low, same.high) == (-3 / 60, 3 / 60)  # the rule of three
    assert not same.significant
    with pytest.raises(ValueError, match="same items"):
        table(1).against(base)


def test_pooled_differences_average_an_item_first() -> None:
    assert [item.value for item in averaged([table(1, 0), table(0, 0)]).columns["a"]] == [0.5, 0]
    found = pooled([(table(0, 0, 1), table(1, 0, 1)), (table(1, 0, 1), table(1, 0, 1))])
    assert (found.lost, found.won) == (0, 1)
    assert found.value == pytest.approx(0.5 / 3)
