"""Everything the core does, on families it does not know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import flashu
from flashu import Engine, FlashUError, Recipe, RecipeError
from flashu.plan.presets import fitting
from tests.fakes.masked import MaskedModel, seeded
from tests.fakes.tokens import LEVELS, SIDE, TokenModel
from tests.recipes import BASELINES, GENERATION, UNDERSTANDING, subsets

MODELS = [TokenModel, MaskedModel]
PROMPTS = ["w1 w2 w3", "w4", "w5 w6"]


@pytest.fixture(params=MODELS, ids=lambda cls: cls.spec.family)
def model(request: pytest.FixtureRequest) -> TokenModel:
    return seeded(request.param)


def engine_of(model: TokenModel, recipe: Any = "exact", **options: Any) -> Engine:
    return Engine(model, model.processor, recipe, **options)  # type: ignore[arg-type]


def test_drawing(model: TokenModel) -> None:
    engine = engine_of(model)
    drawn = engine.generate(PROMPTS, seed=3)
    assert drawn.latents.shape == (3, SIDE * SIDE)
    assert drawn.images[0].size == (SIDE, SIDE)
    assert set(drawn.latents.flatten().tolist()) <= set(range(LEVELS))
    assert not torch.equal(drawn.latents[0], drawn.latents[1])
    for n, prompt in enumerate(PROMPTS):
        alone = engine.generate(prompt, seed=3 + n)
        assert torch.equal(alone.latents[0], drawn.latents[n])
    assert not torch.equal(engine.generate(PROMPTS[0], seed=3, guidance=1).latents[0], drawn.latents[0])


def naive(model: TokenModel, ids: list[int], experts: list[str]) -> torch.Tensor:
    """Logits after a causal row, the whole row at once and no cache: the definition."""
    from flashu.models.layers import AttentionContext

    spans = tuple((expert, n, n + 1) for n, expert in enumerate(experts))
    x = model.words(torch.tensor([ids]))
    mask = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()[None, None]
    for layer in model.layers:
        x, _ = layer(x, AttentionContext(model.rope(torch.arange(len(ids))[None]), mask, None, spans))
    return model.logits(model.norm(x))[0, -1]


def test_tokens_are_those_of_whole_rows_without_a_cache() -> None:
    from flashu.inference.samplers.noise import Noise
    from tests.fakes.tokens import BOI, BOS, CODES, EOL, ids_of

    model = seeded(TokenModel)
    drawn = engine_of(model).generate("w1 w2 w3", seed=5, guidance=3.0)
    noise, codes = Noise(5), []
    rows = {"main": [BOS, *ids_of("w1 w2 w3"), BOI], "uncond": [BOS, BOI]}
    text = {name: len(row) for name, row in rows.items()}
    for n in range(SIDE * SIDE):
        logits = {
            name: naive(model, row, ["text"] * text[name] + ["image"] * (len(row) - text[name]))[slice(*CODES)]
            for name, row in rows.items()
        }
        guided = logits["uncond"] + 3.0 * (logits["main"] - logits["uncond"])
        code = int((guided.softmax(-1) / noise.exponential(LEVELS)).argmax())
        codes.append(code)
        for row in rows.values():
            row += [code + CODES[0]] + [EOL] * (n % SIDE == SIDE - 1)
    assert drawn.latents[0].tolist() == codes
    # The end of a line goes with the code before it: one forward per code, the first of them the prefill.
    assert [trace.step.kind for trace in drawn.trace] == ["prefill"] + ["token"] * (SIDE * SIDE - 1)
    assert [trace.tokens for trace in drawn.trace[1:6]] == [1, 1, 1, 2, 1]


def test_answers_streams_and_chat(model: TokenModel) -> None:
    engine = engine_of(model)
    image = engine.generate("w1").images[0]
    answers = engine.answer([image] * 3, PROMPTS, max_new_tokens=5)
    for question, answer in zip(PROMPTS, answers, strict=True):
        assert engine.answer(image, question, max_new_tokens=5).tokens == answer.tokens
        assert "".join(engine.stream(image, question, max_new_tokens=5)) == answer.text
    # What the questions have in common went through once.
    assert sum(answer.trace[0].shared for answer in answers) == 1 + SIDE * SIDE
    assert engine.chat("w3 w4", max_new_tokens=2).tokens


def test_edit() -> None:
    model = seeded(TokenModel)
    engine = engine_of(model)
    image = engine.generate("w1").images[0]
    edited = engine.edit(image, "w9", seed=1)
    assert edited.latents.shape == (1, SIDE * SIDE)
    assert not torch.equal(edited.latents, engine.edit(engine.generate("w2").images[0], "w9", seed=1).latents)
    with pytest.raises(FlashUError, match="does not edit"):
        engine_of(seeded(MaskedModel)).edit(image, "w9")


@pytest.mark.parametrize("task", ["generation", "understanding"])
def test_the_shared_recipes(model: TokenModel, task: str) -> None:
    """Every method that has something to work on, alone and in pairs; the others are refused, with the reason."""
    image = engine_of(model).generate("w1").images[0]
    recipes = [*subsets(GENERATION if task == "generation" else UNDERSTANDING).values()]
    recipes += [Recipe((method,)) for method in BASELINES] if task == "generation" else []
    ran = 0
    for recipe in recipes:
        fits = fitting(recipe, model.spec)
        if len(fits.methods) < len(recipe.methods):
            with pytest.raises(RecipeError, match=model.spec.family):
                engine_of(model, recipe)
        if not fits.methods:
            continue
        engine, ran = engine_of(model, fits), ran + 1
        if task == "generation":
            drawn = engine.generate(PROMPTS[:2], seed=1)
            assert torch.equal(drawn.latents[1], engine.generate(PROMPTS[1], seed=2).latents[0])
        else:
            together = engine.answer([image] * 2, PROMPTS[:2])
            assert together[1].tokens == engine.answer(image, PROMPTS[1]).tokens
    assert ran > 5


def test_calibration_covers_the_experts_that_ran(model: TokenModel) -> None:
    engine = engine_of(model, "quality")
    known = engine.calibrate("generation", prompts=PROMPTS)
    assert known.scores["generation"].shape == (2 * model.spec.layers, 48)
    assert bool((known.scores["generation"] >= 0).all())
    seen = engine.calibrate("understanding", pairs=[(engine.generate("w1").images[0], "w2 w3")])
    assert bool((seen.scores["understanding"][1::2] == -1).all())  # no token of an answer is the image expert's
    assert bool((seen.scores["understanding"][::2] >= 0).all())
    engine.prepare("understanding")
    assert {expert for _, expert in engine.prepared.banks["understanding"]} == {"text"}


def test_pruning_in_place_and_release(model: TokenModel) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    copied, placed = (engine_of(model, "quality", in_place=flag) for flag in (False, True))
    want = copied.generate("w1 w2", seed=4)
    placed.prepared.calibration = copied.calibration
    assert torch.equal(placed.generate("w1 w2", seed=4).latents, want.latents)
    assert any(ffn.order is not None for ffn in model.ffns().values())
    placed.release()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_explain_agrees_with_what_runs(model: TokenModel) -> None:
    for recipe in ("exact", "paper"):
        engine = engine_of(model, recipe)
        steps = None if model.spec.drawing == "autoregressive" else 8
        table = engine.explain("generation", prompt_tokens=5, steps=steps)
        trace = engine.generate("w1 w2 w3", steps=steps).trace
        assert [f.step for f in table.forwards] == [t.step for t in trace]
        assert [f.rows for f in table.forwards] == [t.rows for t in trace]
        assert [len(f.plan.layers.skip) for f in table.forwards] == [len(t.plan.layers.skip) for t in trace]
        answer = engine.answer(engine.generate("w1").images[0], "w1 w2", max_new_tokens=4)
        planned = engine.explain("understanding", question_tokens=4, max_new_tokens=4)
        assert planned.forwards[0].tokens == answer.trace[0].tokens


def test_patch_and_remove(model: TokenModel) -> None:
    before = engine_of(model).generate("w1").latents
    engine = flashu.apply_flashu_patch(model, "quality")
    assert engine.generate("w1").latents.shape == before.shape
    flashu.remove_flashu_patch(model)
    assert torch.equal(engine_of(model).generate("w1").latents, before)


def test_the_core_names_no_family() -> None:
    source = Path(flashu.__file__).parent
    files = [p for p in source.rglob("*.py") if p.parent.parent.name != "models" or p.parent.name == "models"]
    named = [str(p) for p in files if "fakes" in p.read_text() or "tests." in p.read_text()]
    assert named == []
