"""What the exact runtime leaves out, what the original does that nobody expects, and every method on the tiny model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flashu
from flashu import Engine, FlashUError, ImageError, PromptError, Recipe, RecipeError
from flashu.models.showo.public import ShowO
from flashu.models.showo.reference import Reference
from flashu.plan.methods import TaylorCache
from flashu.plan.presets import PRESETS, fitting
from tests.models.showo.golden.recorded import IDS, SIZES, processor, tiny_model
from tests.recipes import BASELINES, GENERATION, UNDERSTANDING, subsets

pytestmark = pytest.mark.filterwarnings("ignore:this model does not know")
COUNT = SIZES["num_vq_tokens"]
PROMPTS = ["w1 w2 w3", "w4", "w5 w6"]


@pytest.fixture(scope="module")
def model() -> ShowO:
    return tiny_model()


@pytest.fixture(scope="module")
def engine(model: ShowO) -> Engine:
    return Engine(model, processor())


@contextmanager
def calls(module: nn.Module, note: Callable[[Any], Any]) -> Iterator[list[Any]]:
    """What ``note`` makes of the first argument of each call of a module."""
    noted: list[Any] = []
    handle = module.register_forward_hook(lambda _m, args, out: noted.append(note(args[0])))
    yield noted
    handle.remove()


# -- invariants ----------------------------------------------------------------------------------------------------
def test_the_engine_draws_and_answers_as_the_original(engine: Engine, model: ShowO) -> None:
    reference = Reference(model, processor())
    for guidance in (0.0, 1.0, 5.0):
        drawn = engine.generate(PROMPTS, seed=3, steps=5, guidance=guidance)
        for n, prompt in enumerate(PROMPTS):
            alone = reference.generate(prompt, seed=3 + n, steps=5, guidance=guidance)
            assert torch.equal(alone.latents[0], drawn.latents[n])  # j: and it depends on no batch
    image = engine.generate("w1", steps=5).images[0]
    for question, answer in zip(PROMPTS, engine.answer(image, PROMPTS), strict=True):
        assert reference.answer(image, question).tokens == answer.tokens
        assert "".join(engine.stream(image, question)) == answer.text


def test_prompts_go_through_once_and_then_the_image_alone(engine: Engine, model: ShowO) -> None:
    """a, g, h: two prompts, one unconditional prompt for both; then soi, codes and eoi in every forward."""
    with calls(model.layers[0], lambda x: tuple(x.shape[:2])) as shapes:
        engine.generate(["w1 w2 w3", "w4"], steps=4, guidance=2.0)
    assert shapes == [(3, 6), *[(4, COUNT + 2)] * 4]


def test_branches_share_their_embedding_and_logits_are_of_codes(
    engine: Engine, model: ShowO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """d, e: one row of codes is embedded for both branches, and only codes at image tokens have logits."""
    made: list[Tensor] = []
    plain = model.logits
    monkeypatch.setattr(model, "logits", lambda *a: made.append(plain(*a)) or made[-1])
    with calls(model.showo.model.embed_tokens, lambda ids: ids.numel()) as embedded:
        engine.generate("w1 w2 w3", steps=4, guidance=2.0)
    assert embedded[2:] == [COUNT + 2] * 4
    assert {tuple(x.shape) for x in made} == {(2, COUNT, SIZES["codebook_size"])}


def test_questions_about_one_picture_share_it(engine: Engine) -> None:
    """h: [mmu, soi, codes, eoi] goes through once for all of them."""
    image = engine.generate("w1", steps=3).images[0]
    answers = engine.answer([image] * 3, PROMPTS, max_new_tokens=3)
    assert sum(answer.trace[0].shared for answer in answers) == COUNT + 3
    assert [t.tokens for t in answers[0].trace[1:]] == [1] * (len(answers[0].trace) - 1)


def test_branches_of_equal_prompts_are_one(engine: Engine, model: ShowO) -> None:
    """g: no guidance, no second row; guidance counts as the authors count it, so that 1 has one."""
    rows = {g: engine.generate("w1", steps=3, guidance=g).trace[0].rows for g in (0.0, 1.0, 2.0)}
    assert rows == {0.0: 1, 1.0: 2, 2.0: 2}
    assert engine.generate("w1", steps=3, guidance=2.0).trace[0].plan.scales == {"uncond": 3.0}
    planned = [engine.explain(guidance=g).forwards[0].rows for g in (0.0, 1.0)]
    assert planned == [1, 2]


@pytest.mark.parametrize("recipe", ["exact", "paper"])
def test_explain_agrees_with_what_runs(engine: Engine, recipe: str) -> None:
    own = engine.with_recipe(recipe)
    table, trace = own.explain(steps=10, prompt_tokens=5), own.generate("w1 w2", steps=10).trace
    assert [f.step for f in table.forwards] == [t.step for t in trace]
    assert [(f.rows, f.tokens) for f in table.forwards] == [(t.rows, t.tokens) for t in trace]
    image = own.generate("w1", steps=3).images[0]
    answer = own.answer(image, "w1 w2", max_new_tokens=4)
    assert own.explain("understanding", question_tokens=4).forwards[0].tokens == answer.trace[0].tokens


@pytest.mark.slow
def test_compiled_layers_draw_the_same(model: ShowO, engine: Engine) -> None:
    from flashu.runtime.compile import LayerCalls

    torch._dynamo.reset()
    compiled = engine.with_recipe("exact")
    compiled.prepared.calls = LayerCalls(True, backend="eager")
    assert torch.equal(compiled.generate("w1 w2", steps=4).latents, engine.generate("w1 w2", steps=4).latents)
    image = engine.generate("w1", steps=3).images[0]
    assert compiled.answer(image, "w2").tokens == engine.answer(image, "w2").tokens


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_draws_and_answers(dtype: torch.dtype) -> None:
    model = tiny_model().to(dtype)
    assert model.showo.model.rotary_emb.inv_freq.dtype == torch.float32
    engine = Engine(model, processor())
    drawn = engine.generate("w1 w2", steps=4)
    assert drawn.latents.dtype == torch.long
    assert len(engine.answer(drawn.images[0], "w3", max_new_tokens=3).tokens) <= 3


# -- a part of an image -----------------------------------------------------------------------------------------------
def test_given_codes_stay(engine: Engine) -> None:
    whole = engine.generate("w1", steps=5)
    hidden = torch.arange(COUNT) % 3 == 0
    drawn = engine.generate(["w7 w8", "w9"], image=whole.latents[0], mask=hidden, steps=5)
    assert (drawn.latents[:, ~hidden] == whole.latents[0, ~hidden]).all()
    assert not torch.equal(drawn.latents[0], drawn.latents[1])
    again = engine.generate("w7 w8", image=whole.images[0], mask=hidden, steps=5)
    assert torch.equal(again.latents[0], drawn.latents[0])


def test_a_mask_is_a_picture_too(engine: Engine) -> None:
    """White is drawn, one value for each code, at least half white."""
    whole, side = engine.generate("w1", steps=3), engine.layout.defaults.height
    white = torch.full((3, side, side), -1.0)
    white[:, : side // 2] = 1
    drawn = engine.generate("w5", image=whole.images[0], mask=white, steps=3).latents[0]
    hidden = torch.arange(COUNT) < COUNT // 2
    assert torch.equal(drawn, engine.generate("w5", image=whole.images[0], mask=hidden, steps=3).latents[0])


def test_a_whole_known_image_is_changed_as_in_the_original() -> None:
    """One code is hidden again after every forward though none was; "maskgit" leaves given codes alone."""
    codes = torch.arange(COUNT)
    known: dict[str, Any] = {"image": codes, "mask": torch.zeros(COUNT, dtype=torch.bool), "steps": 6, "guidance": 0}
    original, right = (
        Engine(tiny_model(remasking=remasking), processor()).generate("w1", seed=1, **known).latents[0]
        for remasking in ("original", "maskgit")
    )
    assert 0 < int((original != codes).sum()) <= 6
    assert torch.equal(right, codes)


def test_the_temperature_compounds_unless_told_otherwise() -> None:
    drawn = [
        Engine(tiny_model(remasking=remasking), processor()).generate("w1 w2", seed=4, steps=8).latents
        for remasking in ("original", "maskgit")
    ]
    assert not torch.equal(*drawn)


# -- traps ---------------------------------------------------------------------------------------------------------
def test_the_end_of_text_is_its_beginning(engine: Engine) -> None:
    """One id for both: a question begins with it and only an answer is ended by it."""
    assert IDS["sot"] == IDS["eot"]
    text = processor().text
    assert text.question("w1")[0] == processor().stop
    image = engine.generate("w1", steps=3).images[0]
    answer = engine.answer(image, "w1")
    assert len(answer.tokens) > 1


def test_codes_may_be_said_but_are_no_words(engine: Engine) -> None:
    low, _ = engine.model.spec.codes  # type: ignore[misc]
    assert engine.layout.text([1, low + 3, IDS["eoi"], 2]) == "w1 w2"


def test_soi_and_eoi_change_with_the_image(model: ShowO) -> None:
    """They stand in the bidirectional block, so they are computed in every forward."""
    from flashu.models.showo import naive

    ids = torch.tensor(
        [[IDS["t2i"], IDS["sot"], 1, IDS["eot"], IDS["soi"], *[SIZES["mask_token_id"]] * COUNT, IDS["eoi"]]]
    )
    mask = naive.additive(naive.drawing_mask(ids, IDS["pad"], IDS["soi"], IDS["eoi"]), model.dtype)
    changed = ids.clone()
    changed[0, 6] = SIZES["image_token_offset"]
    first, second = ([], [])
    naive.forward(model, ids, mask, outputs=first)
    naive.forward(model, changed, mask, outputs=second)
    assert torch.equal(first[-1][0, :4], second[-1][0, :4])
    assert all(float((first[-1] - second[-1])[0, n].abs().max()) > 0.1 for n in (4, -1))


# -- methods ---------------------------------------------------------------------------------------------------------
def recipes(task: str) -> dict[str, Recipe]:
    found = subsets(GENERATION if task == "generation" else UNDERSTANDING)
    return found | ({m.name: Recipe((m,), m.name) for m in BASELINES} if task == "generation" else {})


@pytest.mark.parametrize(("task", "name"), [(t, n) for t in ("generation", "understanding") for n in recipes(t)])
def test_every_recipe_runs_or_is_refused(engine: Engine, model: ShowO, task: str, name: str) -> None:
    recipe = recipes(task)[name]
    fits = fitting(recipe, model.spec)
    if len(fits.methods) < len(recipe.methods):
        with pytest.raises(RecipeError, match="showo"):
            engine.with_recipe(recipe)
    if not fits.methods:
        return
    own = engine.with_recipe(fits)
    if task == "generation":
        drawn = own.generate(PROMPTS[:2], seed=1, steps=6)
        assert torch.equal(drawn.latents[1], own.generate(PROMPTS[1], seed=2, steps=6).latents[0])
        return
    image = torch.linspace(-1, 1, 3 * 8 * 8).view(3, 8, 8)
    together = own.answer([image] * 2, PROMPTS[:2])
    assert together[1].tokens == own.answer(image, PROMPTS[1]).tokens


def test_logits_are_kept_between_forwards(engine: Engine, model: ShowO) -> None:
    """c: of codes that are still masked, from the kept output of the last layer; no layer runs."""
    cached = engine.with_recipe(Recipe((TaylorCache("generation", 2, 0, 0.0),), "kept"))
    with calls(model.layers[0], lambda x: x.shape[1]) as tokens:
        drawn = cached.generate("w1 w2", seed=2, steps=6)
    assert tokens == [5, *[COUNT + 2] * 3]
    assert [t.tokens for t in drawn.trace] == [COUNT + 2, 0] * 3
    exact = engine.generate("w1 w2", seed=2, steps=6)
    assert not torch.equal(drawn.latents, exact.latents)
    table = cached.explain(steps=6)
    assert [f.tokens for f in table.forwards] == [COUNT + 2, 0] * 3


@pytest.mark.parametrize("preset", PRESETS)
def test_presets(engine: Engine, preset: str) -> None:
    own = engine.with_recipe(preset)
    assert own.generate("w1", steps=10).latents.shape == (1, COUNT)
    assert own.answer(own.generate("w1", steps=10).images[0], "w2").tokens


def test_padded_rows_are_refused(engine: Engine) -> None:
    with pytest.raises(RecipeError, match="another family"):
        engine.with_recipe(Recipe(padded=True)).generate("w1", steps=5)


def test_patch_and_remove(model: ShowO) -> None:
    before = Engine(model, processor()).generate("w1", steps=10).latents
    model.processor = processor()
    patched = flashu.apply_flashu_patch(model, "quality")
    assert patched.generate("w1", steps=10).latents.shape == before.shape
    flashu.remove_flashu_patch(model)
    assert torch.equal(Engine(model, processor()).generate("w1", steps=10).latents, before)


# -- bad input -------------------------------------------------------------------------------------------------------
CODES = torch.zeros(COUNT, dtype=torch.long)
HIDDEN = torch.ones(COUNT, dtype=torch.bool)


@pytest.mark.parametrize(
    ("kind", "arguments", "says"),
    [
        (PromptError, {"prompts": "  "}, "empty"),
        (PromptError, {"prompts": "w1 " * 11}, "11 tokens, at most 10"),
        (ImageError, {"height": 16}, "draws 8x8"),
        (FlashUError, {"shift": 3.0}, "leave shift out"),
        (FlashUError, {"history": [("w1", CODES)]}, "leave history out"),
        (ImageError, {"image": CODES}, "both image and mask"),
        (ImageError, {"image": CODES[:3], "mask": HIDDEN}, "16 whole numbers from 0 to 63"),
        (ImageError, {"image": CODES + 64, "mask": HIDDEN}, "from 0 to 63"),
        (ImageError, {"image": CODES, "mask": HIDDEN[:2]}, "16 codes, not 2"),
        (ImageError, {"image": [CODES, CODES], "mask": HIDDEN}, "2 images and 1 masks for 1 prompts"),
    ],
)
def test_bad_drawings(engine: Engine, kind: type, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(kind, match=says):
        engine.generate(**({"prompts": "w1"} | arguments))


def test_bad_questions(engine: Engine, model: ShowO) -> None:
    image = engine.generate("w1", steps=2).images[0]
    with pytest.raises(PromptError, match="empty"):
        engine.answer(image, "")
    with pytest.raises(ImageError, match="one picture, not 2"):
        engine.answer([[image, image]], ["w1"])
    with pytest.raises(FlashUError, match="does not edit"):
        engine.edit(image, "w1")
    blind = processor()
    blind.vae = None
    with pytest.raises(FlashUError, match="without what shows it pictures"):
        Engine(model, blind).answer(image, "w1")
    assert Engine(model, blind).chat("w1 w2", max_new_tokens=2).tokens


def test_rows_of_ids(engine: Engine) -> None:
    from flashu.inference.actions import AnswerRequest

    image = engine.generate("w1", steps=2).images[0]
    ids = engine.processor.row("w1 w2", 1)
    (by_ids,) = engine.respond([AnswerRequest(images=(image,), ids=ids)])
    assert by_ids.tokens == engine.answer(image, "w1 w2").tokens
    for bad, says in (([], "at least one"), (ids[1:], "begins with as many"), ([*ids, ids[0]], "no others")):
        with pytest.raises(FlashUError, match=says):
            engine.respond([AnswerRequest(images=(image,), ids=bad)])


def test_the_picture_stands_first(engine: Engine) -> None:
    row = engine.processor.row
    assert row("<image>w1 w2", 1) == row("w1 w2", 1)
    with pytest.raises(ImageError, match="before the question"):
        row("w1<image>w2", 1)
    assert engine.model.spec.pictures == 1
