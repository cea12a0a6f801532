"""What visual tokens are pruned by, on values set by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import flashu
from flashu.plan import LayerPlan, Route
from flashu.plan.methods import TokenPrune
from flashu.plan.recipe import Recipe
from flashu.runtime import scores
from flashu.runtime.layout import TokenLayout
from flashu.runtime.runner import Runner
from flashu.runtime.scores import SCORES, Inner, dropped

B, S, IMAGE = 2, 9, slice(2, 7)


def layout() -> TokenLayout:
    """Causal rows of two text tokens, five visual ones and two text tokens."""
    visual = torch.zeros(B, S, dtype=torch.bool)
    visual[:, IMAGE] = True
    return replace(TokenLayout.causal([S, S]), visual=visual)


def inner(seed: int = 0) -> Inner:
    g = torch.Generator().manual_seed(seed)
    key, value = (torch.randn(B, 2, S, 4, generator=g) for _ in range(2))
    return Inner(layout(), key, value, torch.randn(B, S, 16, generator=g), torch.randn(B, 4, S, 4, generator=g))


@pytest.mark.parametrize("name", list(SCORES))
def test_only_visual_tokens_are_dropped_and_the_rest_stays_in_order(name: str) -> None:
    kept = dropped(inner(), Route(2, 0.5, name))  # type: ignore[arg-type]
    assert kept is not None
    assert kept.shape == (B, S - 2)
    for row in kept.tolist():
        assert row == sorted(row)
        assert {0, 1, 7, 8} <= set(row)
    assert dropped(inner(), Route(2, 0.1, name)) is None  # type: ignore[arg-type]


def test_norms_and_their_sides() -> None:
    given = inner()
    norms = given.value.square().sum((1, 3))[:, IMAGE]
    kept = dropped(given, Route(2, 0.2, "value_norm", "largest"))
    assert kept is not None
    for row, largest in zip(kept.tolist(), (norms.argmax(1) + 2).tolist(), strict=True):
        assert set(range(S)) - set(row) == {largest}
    kept = dropped(given, Route(2, 0.2, "key_norm", "smallest"))
    assert kept is not None
    least = given.key.square().sum((1, 3))[:, IMAGE].argmin(1) + 2
    for row, smallest in zip(kept.tolist(), least.tolist(), strict=True):
        assert set(range(S)) - set(row) == {smallest}


def test_attention_is_what_the_text_after_the_image_pays() -> None:
    given = inner()
    assert given.query is not None
    key = given.key.repeat_interleave(2, dim=1)
    logits = given.query @ key.transpose(-1, -2) / 2
    late = torch.ones(S, S).triu(1).bool()
    p = logits.masked_fill(late, -torch.inf).softmax(-1).mean(1)
    assert torch.allclose(scores.attention(given, 0)[:, IMAGE], p[:, 7:].mean(1)[:, IMAGE], atol=1e-6)


def test_a_random_score_is_the_seeds() -> None:
    given = inner()
    assert torch.equal(scores.random(given, 1), scores.random(given, 1))
    assert not torch.equal(scores.random(given, 1), scores.random(given, 2))


def test_duplicates_of_a_pivot_go_first_and_pivots_stay() -> None:
    given = inner()
    key, output = given.key.clone(), given.output.clone()
    key[:, :, 4] *= 100  # the pivot
    output[:, 6] = 3 * output[:, 4]  # and its copy
    kept = dropped(Inner(given.layout, key, given.value, output), Route(2, 0.2, "duplication"))
    assert kept is not None
    assert all(set(range(S)) - set(row) == {6} for row in kept.tolist())
    most = dropped(Inner(given.layout, key, given.value, output), Route(2, 0.8, "duplication"))
    assert most is not None
    assert all(set(row) == {0, 1, 4, 7, 8} for row in most.tolist())


def test_looking_at_queries_changes_nothing(tiny: flashu.ShowO2) -> None:
    """A route that drops nothing by attention computes exactly what no route does."""
    x = torch.randn(B, S, tiny.config.llm.hidden_size, generator=torch.Generator().manual_seed(3))
    plain = Runner(tiny).walk(x, layout(), LayerPlan())
    tapped = Runner(tiny).walk(x, layout(), LayerPlan(routes=(Route(2, 0.1, "attention", "smallest"),)))
    assert torch.equal(plain.hidden, tapped.hidden)
    pruned = Runner(tiny).walk(x, layout(), LayerPlan(routes=(Route(2, 0.4, "attention", "smallest"),)))
    assert pruned.hidden.shape[1] == S - 2


def test_other_scores_need_no_calibration(tiny_engine: flashu.Engine) -> None:
    recipe = Recipe((TokenPrune(score="random", seed=3),), "random")
    engine = flashu.Engine(tiny_engine.model, tiny_engine.processor, recipe)
    engine.prepare("understanding")
    assert engine.calibration is None
    assert Recipe.from_dict(recipe.to_dict()) == recipe
