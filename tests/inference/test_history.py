"""Drawing after earlier images in the same row."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

import flashu
from flashu.inference.samplers.noise import Noise
from flashu.inference.samplers.solvers import euler, grid
from flashu.models.showo2 import naive
from flashu.plan.guidance import classifier_free

RED = Image.new("RGB", (64, 64), "red")


@torch.inference_mode()
def naive_drawing(
    engine: flashu.Engine, texts: list[list[int]], images: list[Tensor], seed: int, steps: int, guidance: float
) -> Tensor:
    """The last image of a row [text, image, text, image, ..., text, drawn] by whole forwards, written from the layout:
    text before an image is [bos or eoi, words, boi], its time token is at t = 1."""
    model = engine.model
    ids: list[int] = []
    where = []
    for number, text in enumerate(texts):
        ids += [253 if number else 250, *text, 252]
        where.append([len(ids), 17])
        ids += [254] * 17
    count, z = len(texts), Noise(seed).normal(4, 8, 8)[None]
    times = grid(steps, 3.0)
    for t, dt in zip(times[:-1], times.diff(), strict=True):
        at = torch.ones(count)
        at[-1] = t
        row, positions = torch.tensor([ids]), torch.tensor([where])
        mask = naive.omni_mask(len(ids), positions)
        v = naive.forward(model, row, torch.cat([*(i[None] for i in images), z]), at, mask, positions)[1][-1:]
        plain, slot = torch.tensor([[250, 252, *[254] * 17]]), torch.tensor([[[2, 17]]])
        null = naive.forward(model, plain, z, t[None], naive.omni_mask(19, slot), slot)[1]
        z = euler(z, classifier_free({"main": v, "uncond": null}, {"uncond": guidance}), float(dt))
    return z


def words(ids: list[int]) -> str:
    return " ".join(f"w{n}" for n in ids)


texts = st.lists(st.integers(0, 249), min_size=1, max_size=6)


@settings(max_examples=8, deadline=None)
@given(before=st.lists(texts, min_size=1, max_size=3), prompt=texts, seed=st.integers(0, 99))
def test_it_draws_what_the_naive_row_draws(
    tiny_engine: flashu.Engine, before: list[list[int]], prompt: list[int], seed: int
) -> None:
    images = [Noise(500 + n).normal(4, 8, 8) for n in range(len(before))]
    history = [(words(text), image) for text, image in zip(before, images, strict=True)]
    drawn = tiny_engine.generate(words(prompt), history=history, seed=seed, steps=4, guidance=3.0, decode=False)
    torch.testing.assert_close(
        drawn.latents, naive_drawing(tiny_engine, [*before, prompt], images, seed, 4, 3.0), rtol=0, atol=1e-3
    )


def test_pictures_are_encoded_and_latents_are_not(tiny_engine: flashu.Engine) -> None:
    first = tiny_engine.generate("w1 w2", steps=3)
    vae = tiny_engine.processor.vae
    assert vae is not None
    seen = vae.encode(tiny_engine.processor.pixels(first.images[0]))[0]
    as_picture = tiny_engine.generate("w3", history=[("w1 w2", first.images[0])], steps=3, guidance=2.0).latents
    as_latents = tiny_engine.generate("w3", history=[("w1 w2", seen)], steps=3, guidance=2.0).latents
    assert torch.equal(as_picture, as_latents)
    other = tiny_engine.generate("w3", history=[("w1 w2", first.latents[0])], steps=3, guidance=2.0).latents
    assert not torch.allclose(other, as_latents)
    assert not torch.allclose(other, tiny_engine.generate("w3", steps=3, guidance=2.0).latents)


def test_a_batch_of_histories_of_unlike_length(tiny_engine: flashu.Engine) -> None:
    """Each as if drawn alone; equal prompts with other images are other prompts."""
    one, two = (Noise(n).normal(4, 8, 8) for n in (7, 8))
    histories = [[("w1", one)], [], [("w1", two)], [("", one), ("w5 w6", two)]]
    prompts = ["w2", "w2", "w2", "w9 w8"]
    together = tiny_engine.generate(prompts, history=histories, seed=3, steps=4).latents
    for n, (prompt, history) in enumerate(zip(prompts, histories, strict=True)):
        alone = tiny_engine.generate(prompt, history=history, seed=3 + n, steps=4).latents
        torch.testing.assert_close(together[n : n + 1], alone, rtol=0, atol=1e-3)
    assert torch.equal(
        tiny_engine.generate("w2", history=[], steps=2).latents, tiny_engine.generate("w2", steps=2).latents
    )
    twice = tiny_engine.generate("w2", history=histories[0], images_per_prompt=2, seed=3, steps=4, batch_size=1)
    torch.testing.assert_close(twice.latents[0], together[0], rtol=0, atol=1e-3)


def test_earlier_images_are_computed_once_per_layer_plan(tiny_engine: flashu.Engine) -> None:
    """Invariant a: per forward the decoder sees the drawn image's block alone, however long the history; its pictures
    are embedded once."""
    decoder, embedder = [], []
    model = tiny_engine.model
    handles = [
        model.layers[0].register_forward_hook(lambda _m, args, _o: decoder.append(args[0].shape[1])),
        model.und_trans.register_forward_hook(lambda _m, args, _o: embedder.append(len(args[0]))),
    ]
    drawn = tiny_engine.generate("w3", history=[("w1", RED), ("w2", RED)], steps=5)
    for handle in handles:
        handle.remove()
    assert decoder == [2 * (2 + 17 + 1) + 2 + 1, *[17] * 5]
    assert embedder == [1, *[1] * 5]
    assert {record.past for record in drawn.trace} == {43}


def test_methods_apply(tiny_engine: flashu.Engine) -> None:
    """Skipped layers, reused heads and guidance phases fall where they do without a history."""
    methods = flashu.FlashUConfig(r_p=0, r_LS=0.34, T_LS=4, T_cache=3, tau=0.3).recipe().of("generation")
    engine = tiny_engine.with_recipe(flashu.Recipe(methods, name="methods"))
    plain = engine.generate("w2", steps=12, seed=1)
    after = engine.generate("w2", history=[("w1", RED)], steps=12, seed=1)
    assert [(r.plan.features, r.plan.guidance, r.plan.probe, len(r.plan.layers.skip)) for r in after.trace] == [
        (r.plan.features, r.plan.guidance, r.plan.probe, len(r.plan.layers.skip)) for r in plain.trace
    ]
    assert {r.plan.features for r in after.trace} == {"run", "reuse"}
    assert any(r.plan.layers.skip for r in after.trace)
    assert not torch.allclose(after.latents, plain.latents)


@pytest.mark.parametrize(
    ("prompts", "history", "error", "what"),
    [
        ("w1", "w2", flashu.PromptError, "pairs"),
        ("w1", [RED], flashu.PromptError, "pairs"),
        ("w1", [("w2", RED, 3)], flashu.PromptError, "pairs"),
        (["w1", "w2"], [("w2", RED)], flashu.PromptError, "for each prompt"),
        (["w1"], [("w2", RED)], flashu.PromptError, "pairs"),
        ("w1", [("w2", torch.zeros(4, 6, 8))], flashu.ImageError, "the size of the image to draw"),
        ("w1", [("w2", torch.full((4, 8, 8), torch.nan))], flashu.ImageError, "finite"),
        ("w1", [("w2", None)], flashu.ImageError, "must be a PIL image"),
        ("w1", [(7, RED)], flashu.PromptError, "must be a string"),
        ("w1", [("w2 " * 20, RED)], flashu.PromptError, "at most 19"),
        ("", [("w2", RED)], flashu.PromptError, "empty"),
    ],
)
def test_what_is_no_history_is_said(
    prompts: object, history: object, error: type[Exception], what: str, tiny_engine: flashu.Engine
) -> None:
    with pytest.raises(error, match=what):
        tiny_engine.generate(prompts, history=history, steps=2)  # type: ignore[arg-type]


def test_padded_rows_have_no_history(tiny_engine: flashu.Engine) -> None:
    engine = tiny_engine.with_recipe(flashu.Recipe(padded=True, name="padded"))
    with pytest.raises(flashu.RecipeError, match="one image per row"):
        engine.generate("w1", history=[("w2", RED)], steps=2)
