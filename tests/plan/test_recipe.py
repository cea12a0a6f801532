"""Recipes, presets and FlashUConfig: what they mean, how they are saved, what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import flashu
from flashu.plan import FULL, Observations, Plan, Step, share
from flashu.plan.presets import PRESETS, TUNED, FlashUConfig, Target, UnderstandingConfig, load_recipe
from flashu.plan.recipe import Recipe


def plans(recipe: Recipe, total: int, guidance: float = 5.0, layers: int = 28) -> list[Plan]:
    observed = Observations((0.5,) * layers)
    return [recipe.plan(Step("generation", "block", i, total), observed, {"uncond": guidance}) for i in range(total)]


def test_the_paper_preset_is_table_7_and_8() -> None:
    recipe = PRESETS["paper"]()
    assert recipe.forwards(50) == 35
    steps = plans(recipe, 35, guidance=10.0)
    assert sum(p.layers.ffn == FULL for p in steps) == 11  # tau = 0.3 of 35, rounded as the paper's code does
    assert [i for i, p in enumerate(steps) if p.probe != "off"] == [0, 10, 20]
    assert {len(p.layers.skip) for p in steps if p.layers.skip} == {5}  # int(0.2 * 28)
    assert [i for i, p in enumerate(steps) if p.features == "run"] == [0, 5, 10, 15, 20, *range(24, 35)]
    assert [p.guidance for p in steps] == [7.5] * 24 + [10.0] * 11
    settings = {m.name: m.to_dict() for m in recipe.of("understanding")}
    assert settings["ffn_prune"]["ratio"] == settings["layer_skip"]["ratio"] == 0.10
    assert settings["layer_skip"]["interval"] == 10
    assert (settings["token_prune"]["layer"], settings["token_prune"]["ratio"]) == (2, 0.5)
    assert settings["token_prune"]["side"] == "largest"


def test_the_readme_example_of_the_paper() -> None:
    """Its schedule covers 32 forwards, and tau counts forwards."""
    config = FlashUConfig(r_p=0.20, r_LS=0.20, T_LS=10, T_cache=5, tau=10, schedule=[(4, 5.0), (8, 7.5), (20, 11.0)])
    recipe = config.recipe()
    assert recipe.forwards(50) == 32
    steps = plans(recipe, 32)
    assert [p.guidance for p in steps] == [5.0] * 4 + [7.5] * 8 + [11.0] * 20
    assert sum(p.layers.ffn == FULL for p in steps) == 10


def test_exact_approximates_nothing() -> None:
    recipe = PRESETS["exact"]()
    assert recipe.methods == ()
    assert recipe.forwards(50) == 50
    assert {(p.layers.ffn, p.layers.skip, p.features, p.probe, p.guidance) for p in plans(recipe, 50)} == {
        (FULL, frozenset(), "run", "off", 5.0)
    }


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_a_file(name: str, tmp_path: Path) -> None:
    recipe = PRESETS[name]()
    recipe.save(tmp_path / "recipe.json")
    assert load_recipe(tmp_path / "recipe.json") == recipe
    assert load_recipe(str(tmp_path / "recipe.json")) == recipe == load_recipe(name)


@given(
    r_p=st.floats(0, 0.9),
    r_LS=st.floats(0, 0.9),
    T_LS=st.integers(1, 20),
    T_cache=st.integers(1, 10),
    tau=st.one_of(st.floats(0, 0.99), st.integers(0, 40)),
    reference=st.booleans(),
)
def test_any_valid_config_survives_json(r_p, r_LS, T_LS, T_cache, tau, reference) -> None:
    recipe = FlashUConfig(r_p, r_LS, T_LS, T_cache, tau, reference=reference).recipe()
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


@given(total=st.integers(1, 200), fraction=st.floats(0, 0.999), count=st.integers(1, 300))
def test_share(total: int, fraction: float, count: int) -> None:
    assert abs(share(fraction, total) - fraction * total) <= 0.5 + 1e-9
    assert share(count, total) == min(count, total)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: FlashUConfig(r_p=1.2), "r_p"),
        (lambda: FlashUConfig(T_cache=0), "T_cache"),
        (lambda: FlashUConfig(schedule=[]), "at least one"),
        (lambda: FlashUConfig(schedule=[(30, 5.0), (20, 7.0)], steps=35), "covers 50 forwards"),
        (lambda: UnderstandingConfig(token_ratio=1.0).methods(), "token pruning ratio"),
        (lambda: load_recipe("papre"), "no preset 'papre': give exact, paper"),
        (lambda: Recipe.from_dict({"methods": [{"method": "magic"}]}), "unknown method 'magic'"),
        (lambda: Recipe.from_dict({"methods": [{"method": "head_cache", "intervall": 3}]}), "intervall"),
        (lambda: Recipe.from_dict({"stpes": 3}), "stpes"),
        (lambda: PRESETS["paper"]().without("head_cash"), "head_cash"),
    ],
)
def test_what_is_refused(make, words: str) -> None:
    with pytest.raises(flashu.RecipeError, match=words):
        make()


def test_a_broken_recipe_file(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text("{not json")
    with pytest.raises(flashu.RecipeError, match="not a recipe file"):
        load_recipe(tmp_path / "r.json")


def test_without_leaves_a_method_out() -> None:
    recipe = PRESETS["paper"]().without("layer_skip", "token_prune")
    assert [m.name for m in recipe.of("generation")] == ["ffn_prune", "head_cache", "adaptive_guidance"]
    assert recipe.name == "paper without layer_skip, token_prune"


def test_a_tuned_preset_is_for_the_model_it_was_tuned_on(tiny: flashu.ShowO2) -> None:
    """Other weights than those of "scenes" get one error, which names what they can have instead."""
    general = r"general preset \(exact, paper, fast, quality\)"
    for name in ("balanced", "scenes-balanced", TUNED / "scenes-balanced.json"):
        with pytest.raises(flashu.RecipeError, match=general):
            flashu.Engine(tiny, tiny.processor, name)
    with pytest.raises(flashu.RecipeError, match=general):
        load_recipe("balanced")
    with pytest.raises(flashu.RecipeError, match=general):
        load_recipe("balanced", Target("scenes", tiny.spec, "0123456789abcdef"))
    with pytest.raises(flashu.RecipeError, match=general):
        flashu.Engine(tiny, tiny.processor).with_recipe("balanced")
    with pytest.raises(flashu.RecipeError, match=general):
        flashu.load("scenes-hard", "balanced")


@pytest.mark.parametrize("name", ["balanced", "scenes-balanced"])
def test_a_tuned_preset_works_where_it_was_tuned(name: str) -> None:
    engine = flashu.load("scenes", name)
    assert engine.recipe.name == "scenes-balanced"
    assert engine.recipe == engine.with_recipe(TUNED / "scenes-balanced.json").recipe
    assert engine.generate("a red circle", steps=4, decode=False).latents.isfinite().all()


def test_general_presets_leave_out_what_a_model_has_no_structure_for(caplog: pytest.LogCaptureFixture) -> None:
    """Of a model without a head that can be cached, and whose codes each take a forward."""
    from tests.fakes.tokens import TokenModel

    with caplog.at_level("INFO", logger="flashu"):
        recipe = load_recipe("paper", Target("", TokenModel.spec))
    assert [m.name for m in recipe.of("generation")] == ["ffn_prune", "layer_skip"]
    assert [m.name for m in recipe.of("understanding")] == ["ffn_prune", "token_prune"]
    for method in ("head_cache", "adaptive_guidance", "layer_skip"):
        assert f"leaves out {method}" in caplog.text
    assert load_recipe("exact", Target("", TokenModel.spec)) == PRESETS["exact"]()
