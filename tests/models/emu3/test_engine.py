"""The exact runtime and the methods on Emu3: what is computed, and that nothing else depends on it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import flashu
from flashu import Engine, FlashUError, Recipe, RecipeError
from flashu.inference.actions import DrawRequest
from flashu.models.emu3.model import Emu3
from flashu.plan.presets import PRESETS, fitting
from flashu.runtime.cache import KVBlock
from tests.models.emu3.emu3_tiny import processor
from tests.models.emu3.golden.recorded import model, vq
from tests.recipes import BASELINES, GENERATION, UNDERSTANDING, subsets

PROMPTS = ["w5 w6 w7", "w9", "w11 w12"]


@pytest.fixture(scope="module")
def made() -> Emu3:
    return model()


@pytest.fixture
def engine(made: Emu3) -> Engine:
    return Engine(made, processor(vq()))


def test_an_image_does_not_depend_on_its_batch(engine: Engine) -> None:
    """j; and seeds matter."""
    drawn = engine.generate(PROMPTS, seed=3)
    assert drawn.latents.shape == (3, 4, 6)
    assert drawn.images[0].size == (6 * 8, 4 * 8)
    for n, prompt in enumerate(PROMPTS):
        assert torch.equal(engine.generate(prompt, seed=3 + n).latents[0], drawn.latents[n])
    assert not torch.equal(engine.generate(PROMPTS[0], seed=4).latents[0], drawn.latents[0])
    sizes = engine.generate("w1", height=16, width=40).latents.shape
    assert sizes == (1, 2, 5)


def test_no_logits_that_nobody_reads(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """e, i: of one token per row, over the codes alone."""
    seen: list[Any] = []
    plain = engine.model.logits

    def noted(hidden: Tensor, codes: Any = None) -> Tensor:
        seen.append((hidden.shape[:2], codes))
        return plain(hidden, codes)

    monkeypatch.setattr(engine.model, "logits", noted)
    engine.generate("w3 w4")
    assert seen == [((2, 1), engine.model.spec.codes)] * 24
    seen.clear()
    engine.generate("w1 w2")  # g: the guidance branch has the same prompt, which goes through once
    assert seen[0] == ((1, 1), engine.model.spec.codes)


def test_the_cache_has_space_for_what_comes_and_is_never_copied(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """k"""
    blocks: list[KVBlock] = []
    begin = KVBlock.__init__

    def noted(self: KVBlock, *args: Any, **settings: Any) -> None:
        begin(self, *args, **settings)
        blocks.append(self)

    monkeypatch.setattr(KVBlock, "__init__", noted)
    engine.generate(PROMPTS, decode=False)
    (block,) = blocks
    assert block.rows == 6
    assert block.taken == [4 * 7 - 2] * 6  # what follows the last code is not fed


def test_explain_agrees_with_what_runs(engine: Engine) -> None:
    for recipe in ("exact", "paper"):
        other = engine.with_recipe(fitting(flashu.plan.presets.load_recipe(recipe), engine.model.spec))
        table, trace = other.explain("generation"), other.generate("w1").trace
        assert [f.step for f in table.forwards] == [t.step for t in trace]
        assert [f.rows for f in table.forwards] == [t.rows for t in trace]
        assert [len(f.plan.layers.skip) for f in table.forwards] == [len(t.plan.layers.skip) for t in trace]


def test_questions_share_their_picture(engine: Engine) -> None:
    """h"""
    picture = engine.generate("w1").images[0]
    together = engine.answer([picture] * 3, PROMPTS, max_new_tokens=5)
    for question, answer in zip(PROMPTS, together, strict=True):
        alone = engine.answer(picture, question, max_new_tokens=5)
        assert alone.tokens == answer.tokens
        assert "".join(engine.stream(picture, question, max_new_tokens=5)) == answer.text
    block = engine.processor.text.image(engine.layout.encode(engine.processor.pixels(picture))[0])
    assert sum(answer.trace[0].shared for answer in together) == len(engine.processor.text.before()) + len(block)
    several = engine.answer([[picture, engine.generate("w2").images[0]]], ["w3"], max_new_tokens=3)
    assert several[0].tokens
    assert engine.chat("w3 w4", max_new_tokens=3).tokens


@pytest.mark.parametrize("task", ["generation", "understanding"])
def test_every_recipe(engine: Engine, task: str) -> None:
    """Every method that has something to work on, alone and in pairs; the others are refused, with the reason."""
    picture = engine.generate("w1").images[0]
    recipes = [*subsets(GENERATION if task == "generation" else UNDERSTANDING).values()]
    recipes += [Recipe((method,)) for method in BASELINES] if task == "generation" else []
    known, ran, refused = None, 0, 0
    for recipe in recipes:
        fits = fitting(recipe, engine.model.spec)
        if len(fits.methods) < len(recipe.methods):
            refused += 1
            with pytest.raises(RecipeError, match="emu3"):
                engine.with_recipe(recipe)
        if not fits.methods:
            continue
        other, ran = Engine(engine.model, engine.processor, fits, known), ran + 1
        if task == "generation":
            drawn = other.generate(PROMPTS[:2], seed=1, height=16, width=24)
            assert torch.equal(drawn.latents[1], other.generate(PROMPTS[1], seed=2, height=16, width=24).latents[0])
        else:
            together = other.answer([picture] * 2, PROMPTS[:2])
            assert together[1].tokens == other.answer(picture, PROMPTS[1]).tokens
        known = other.calibration or known
    assert ran > 3
    assert refused == (0 if task == "understanding" else refused)


def test_presets_and_removal(engine: Engine) -> None:
    model = flashu.Emu3(engine.model.config)
    model.load_state_dict(engine.model.state_dict())
    model.eval().processor = engine.processor
    before = model.t2i_generate("w5", seed=2)[0].tobytes()
    for name in PRESETS:
        behind = flashu.apply_flashu_patch(model, fitting(flashu.plan.presets.load_recipe(name), model.spec))
        assert model.t2i_generate("w5", seed=2, height=16, width=24)
        assert behind.recipe.name == name
    flashu.remove_flashu_patch(model)
    assert model.t2i_generate("w5", seed=2)[0].tobytes() == before
    assert isinstance(model.mmu_generate(model.t2i_generate("w5")[0], "w6"), str)


def test_quantized_or_packed_heads_have_the_same_columns(made: Emu3) -> None:
    """Where rows of the output cannot be picked, all are computed."""
    hidden = torch.randn(1, 64, generator=torch.Generator().manual_seed(1))
    codes = made.spec.codes
    want = made.logits(hidden, codes)

    class Wrapped(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x)

    plain = made.lm_head
    made.lm_head = Wrapped(plain)  # type: ignore[assignment]
    try:
        torch.testing.assert_close(made.logits(hidden, codes), want)
    finally:
        made.lm_head = plain


# -- bad input -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("prompt", "settings", "says"),
    [
        ("  ", {}, "empty"),
        ("w1 " * 50, {}, "at most 40"),
        ("w1", {"height": 30}, "multiples of 8"),
        ("w1", {"height": 8 * 200, "width": 8 * 200}, "the model has positions for 512"),
        ("w1", {"steps": 7}, "one by one"),
        ("w1", {"shift": 2.0}, "leave shift out"),
        ("w1", {"history": [("w2", torch.zeros(3, 4, 4))]}, "history"),
        ("w1", {"guidance": -1.0}, "guidance"),
    ],
)
def test_bad_drawings(engine: Engine, prompt: str, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(FlashUError, match=says):
        engine.generate(prompt, **settings)


def test_steps_may_name_what_is_drawn_anyway(engine: Engine) -> None:
    assert engine.generate("w1", steps=24, decode=False).latents.shape == (1, 4, 6)


def test_bad_questions(engine: Engine) -> None:
    picture = engine.generate("w1").images[0]
    with pytest.raises(FlashUError, match="empty"):
        engine.answer(picture, " ")
    with pytest.raises(FlashUError, match="crop it first"):
        engine.answer(picture.resize((600, 40)), "w1")
    with pytest.raises(FlashUError, match="positions for 512"):
        engine.answer([[picture.resize((64, 64))] * 7], ["w1"])
    with pytest.raises(FlashUError, match="several of them"):
        engine.answer(flashu.Video([picture]), "w1")
    with pytest.raises(FlashUError, match="edit"):
        engine.edit(picture, "w1")


def test_without_an_image_tokenizer(made: Emu3) -> None:
    blind = Engine(made, processor(None))
    assert blind.generate("w1").images == []
    with pytest.raises(FlashUError, match="cannot see"):
        blind.answer(torch.zeros(3, 32, 32), "w1")
    with pytest.raises(FlashUError, match="autoencoder"):
        blind.decode(torch.zeros(1, 4, 6, dtype=torch.long))


def test_padded_rows_are_refused(engine: Engine) -> None:
    with pytest.raises(RecipeError, match="padding"):
        engine.layout.draw([DrawRequest("w1")], Recipe(padded=True, reference=True))
    with pytest.raises(RecipeError, match="padding"):
        engine.layout.padded_text("w1")


def test_the_interface_of_transformers(engine: Engine) -> None:
    picture = engine.generate("w1").images[0]
    chat, words = flashu.ChatModel(engine), flashu.ChatProcessor(engine.processor)
    inputs = words(images=picture, text="w3 w4")
    answer = engine.answer(picture, "w3 w4", max_new_tokens=4)
    given = chat.generate(**inputs, max_new_tokens=4)  # type: ignore[arg-type]
    assert given[0, inputs["input_ids"].shape[1] :].tolist() == answer.tokens
    with pytest.raises(FlashUError, match="their own sizes"):
        words(images=[[picture, picture.resize((32, 32))]], text=["w3"])
