"""The laws of exactness (docs/design): what is left out changes nothing, and state belongs to the run."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import flashu
from flashu.inference import requests
from flashu.inference.loops import canvas
from flashu.inference.loops.denoise import denoise
from flashu.inference.run import Run
from flashu.inference.samplers import flow
from flashu.models.showo2 import naive
from flashu.plan import LayerPlan
from flashu.plan.recipe import Recipe, exact
from flashu.runtime.runner import Runner

ROUNDING = 2e-4
words = st.lists(st.integers(0, 249), min_size=1, max_size=19)


def velocity_at(model: flashu.ShowO2, ids: list[list[int]], starts: list[int], z: Tensor, t: float) -> Tensor:
    positions = torch.tensor([[[start, 17]] for start in starts])
    row = torch.tensor(ids)
    times = torch.full((len(ids),), t)
    with torch.inference_mode():
        return naive.forward(model, row, z, times, naive.omni_mask(row.shape[1], positions), positions)[1]


@settings(max_examples=15, deadline=None)
@given(prompts=st.lists(words, min_size=1, max_size=3), seed=st.integers(0, 99), guidance=st.floats(1.5, 8))
def test_packed_rows_equal_padded_rows(
    tiny_engine: flashu.Engine, prompts: list[list[int]], seed: int, guidance: float
) -> None:
    """Laws a, b (layout), d: prefix KV, no padding and one vision pass draw what the original's rows draw."""
    model, processor = tiny_engine.model, tiny_engine.processor
    ids = [[250, *p, 252] for p in prompts]
    z = torch.stack([flow.noise((4, 8, 8), seed + n) for n in range(len(ids))])
    drawn = []
    for recipe in (exact(), Recipe(padded=True)):
        run, rows = requests.drawing(Runner(model), processor, recipe, ids, (8, 8), 4, guidance)
        drawn.append(denoise(run, rows, z, flow.grid(4, 3.0)))
    assert float((drawn[0] - drawn[1]).abs().max()) < ROUNDING * guidance


@pytest.mark.parametrize("size", [(4, 12), (8, 8), (12, 6), (16, 16)])
def test_packed_equals_padded_at_any_resolution(tiny_engine: flashu.Engine, size: tuple[int, int]) -> None:
    """Other grids than the configured one resize the position table, in both layouts alike."""
    ids = [[250, 1, 2, 3, 252], [250, 9, 252]]
    z = torch.stack([flow.noise((4, *size), n) for n in range(2)])
    drawn = []
    for recipe in (exact(), Recipe(padded=True)):
        run, rows = requests.drawing(Runner(tiny_engine.model), tiny_engine.processor, recipe, ids, size, 4, 3.0)
        drawn.append(denoise(run, rows, z, flow.grid(4, 3.0)))
    assert float((drawn[0] - drawn[1]).abs().max()) < 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_draws_and_answers(tiny: flashu.ShowO2, dtype: torch.dtype) -> None:
    full = flashu.Engine(tiny, tiny.processor).generate("w1 w2", steps=4, guidance=0).latents
    tiny.to(dtype)
    engine = flashu.Engine(tiny, tiny.processor)
    half = engine.generate("w1 w2", steps=4, guidance=0)
    assert half.latents.dtype == torch.float32  # integrated in fp32
    assert float((half.latents - full).norm() / full.norm()) < 0.05
    assert len(engine.answer(half.images[0], "w3").tokens) == 8


@settings(max_examples=15, deadline=None)
@given(prompt=words, after=st.lists(st.integers(0, 255), min_size=23, max_size=23), t=st.floats(0, 1))
def test_nothing_after_the_image_is_seen(
    tiny_engine: flashu.Engine, prompt: list[int], after: list[int], t: float
) -> None:
    """Law a: eoi, eos and padding may be any tokens at all, or be cut off."""
    text = tiny_engine.processor.text
    row = text.padded_row([250, *prompt, 252], 16, 60)
    start = len(prompt) + 2
    end = start + 17
    changed = row[:end] + (after * 3)[: 60 - end]
    z = flow.noise((4, 8, 8), 5)[None]
    v = velocity_at(tiny_engine.model, [row], [start], z, t)
    torch.testing.assert_close(v, velocity_at(tiny_engine.model, [changed], [start], z, t), rtol=0, atol=0)
    cut = velocity_at(tiny_engine.model, [row[:end]], [start], z, t)
    torch.testing.assert_close(v, cut, rtol=0, atol=2e-5)


def test_the_prefix_is_computed_once_per_layer_plan(tiny_engine: flashu.Engine) -> None:
    """Law a: as many prefills as distinct layer plans, however many forwards."""
    recipe = Recipe((flashu.FlashUConfig(r_p=0, T_cache=1, r_LS=0.34, T_LS=4, tau=0.3).recipe().methods[0],))
    run, rows = requests.drawing(
        Runner(tiny_engine.model), tiny_engine.processor, recipe, [[250, 7, 252]], (8, 8), 12, 4.0
    )
    denoise(run, rows, flow.noise((4, 8, 8), 0)[None], flow.grid(12, 3.0))
    assert len(run._prefixes) == len({record.plan.layers for record in run.trace}) > 1


def test_the_probe_sees_image_tokens_when_packed_and_all_tokens_when_padded(
    tiny_engine: flashu.Engine, golden_facts: dict
) -> None:
    """Law b: a choice with a name. Image-token similarities differ from whole-row ones, as the original's
    own numbers by region show."""
    regions = golden_facts["verification"]["layer_importance_by_region(step1, step5; unpruned)"]
    everything, image_only = regions["all_positions_incl_padding"][0], regions["image_tokens"][0]
    assert max(abs(a - b) for a, b in zip(everything, image_only, strict=True)) > 0.1
    ids = [[250, *p[:19], 252] for p in golden_facts["common"]["prompts_token_ids"]]
    model, processor = tiny_engine.model, tiny_engine.processor
    z = torch.stack([flow.noise((4, 8, 8), n) for n in range(3)])
    measured = {}
    for padded in (False, True):
        methods = flashu.FlashUConfig(r_p=0, T_cache=1, r_LS=0.34, steps=0, s_low=1).recipe().of("generation")
        run, rows = requests.drawing(Runner(model), processor, Recipe(methods, padded=padded), ids, (8, 8), 11, 5.0)
        denoise(run, rows, z, flow.grid(11, 3.0))
        measured[padded] = [1 - s for s in run.trace[0].similarity or ()]
    assert measured[True] == pytest.approx(everything, abs=0.05)
    assert measured[False] == pytest.approx(image_only, abs=0.05)


def test_reuse_steps_are_bit_exact_with_computing_and_discarding(tiny_engine: flashu.Engine) -> None:
    """Law c: probing on reuse steps (what the released program's forwards amount to) changes no latent."""
    cached = flashu.FlashUConfig(r_p=0, r_LS=0, T_cache=3, steps=0, s_low=1).recipe().of("generation")

    class Busy(Recipe):
        def plan(self, step, seen, guidance):  # type: ignore[no-untyped-def]
            plan = super().plan(step, seen, guidance)
            return replace(plan, probe="tokens")

    drawn = []
    for recipe in (Recipe(cached), Busy(cached)):
        run, rows = requests.drawing(
            Runner(tiny_engine.model), tiny_engine.processor, recipe, [[250, 9, 252]], (8, 8), 9, 4.0
        )
        drawn.append(denoise(run, rows, flow.noise((4, 8, 8), 1)[None], flow.grid(9, 3.0)))
    assert torch.equal(drawn[0], drawn[1])


def test_logits_only_where_read(tiny_engine: flashu.Engine) -> None:
    """Law e: drawing asks for no logits at all; answering for one position per row and token."""
    asked: list[tuple[int, ...]] = []
    handle = tiny_engine.model.showo.lm_head.register_forward_hook(lambda _m, args, _out: asked.append(args[0].shape))
    drawn = tiny_engine.generate("w1 w2", steps=3)
    assert asked == []
    tiny_engine.answer([drawn.images[0]] * 2, ["w1", "w2 w3 w4"], max_new_tokens=4)
    handle.remove()
    assert asked == [(2, 1, 64)] * len(asked)
    assert len(asked) == 4


def test_steps_mean_forwards(tiny_engine: flashu.Engine) -> None:
    """Law f, by counting decoder calls on the model itself."""
    calls = []
    handle = tiny_engine.model.layers[0].register_forward_hook(lambda _m, args, _o: calls.append(args[0].shape[1]))
    tiny_engine.generate("w1 w2", steps=7)
    handle.remove()
    assert calls.count(17) == 7
    assert len(calls) == 8  # and one prefill of both prompts


@settings(max_examples=8, deadline=None)
@given(prompts=st.lists(words, min_size=2, max_size=4), seed=st.integers(0, 99))
def test_an_image_does_not_depend_on_its_batch(tiny_engine: flashu.Engine, prompts: list[list[int]], seed: int) -> None:
    texts = [" ".join(f"w{n}" for n in p) for p in prompts]
    together = tiny_engine.generate(texts, seed=seed, steps=4)
    alone = [tiny_engine.generate(t, seed=seed + n, steps=4).latents[0] for n, t in enumerate(texts)]
    torch.testing.assert_close(together.latents, torch.stack(alone), rtol=0, atol=5e-4)
    chunked = tiny_engine.generate(texts, seed=seed, steps=4, batch_size=2)
    torch.testing.assert_close(together.latents, chunked.latents, rtol=0, atol=5e-4)


@settings(max_examples=8, deadline=None)
@given(questions=st.lists(words, min_size=2, max_size=4))
def test_an_answer_does_not_depend_on_its_batch(tiny_engine: flashu.Engine, questions: list[list[int]]) -> None:
    texts = [" ".join(f"w{n}" for n in q) for q in questions]
    images = tiny_engine.generate([f"w{n}" for n in range(len(texts))], steps=2).images
    together = tiny_engine.answer(images, texts, max_new_tokens=4)
    assert [a.tokens for a in together] == [
        tiny_engine.answer(i, t, max_new_tokens=4).tokens for i, t in zip(images, texts, strict=True)
    ]


def test_a_row_that_stops_early_does_not_hold_up_the_others(tiny: flashu.ShowO2) -> None:
    """With the first row's second token as the stop token, that row ends and the rest go on unchanged."""
    engine = flashu.Engine(tiny, tiny.processor)
    images = engine.generate(["w1", "w2"], steps=2).images
    full = engine.answer(images, ["w3 w5", "w7 w8 w9"], max_new_tokens=6)
    stop = full[0].tokens[1]
    text = tiny.processor.text
    object.__setattr__(text, "ids", replace(text.ids, eos=stop))
    cut = engine.answer(images, ["w3 w5", "w7 w8 w9"], max_new_tokens=6)
    assert cut[0].tokens == full[0].tokens[: full[0].tokens.index(stop)]
    expected = full[1].tokens
    assert cut[1].tokens == (expected[: expected.index(stop)] if stop in expected else expected)


def test_a_stream_says_what_the_answer_says(tiny_engine: flashu.Engine) -> None:
    image = tiny_engine.generate("w1", steps=2).images[0]
    assert "".join(tiny_engine.stream(image, "w3 w5")) == tiny_engine.answer(image, "w3 w5").text


def test_sampling_is_seeded_per_row(tiny_engine: flashu.Engine) -> None:
    image = tiny_engine.generate("w1", steps=2).images[0]
    settings_ = {"temperature": 1.5, "max_new_tokens": 6}
    rows = tiny_engine.answer(image, ["w3 w5", "w3 w5"], seed=4, **settings_)
    assert rows[0].tokens == tiny_engine.answer(image, "w3 w5", seed=4, **settings_).tokens
    assert rows[1].tokens == tiny_engine.answer(image, "w3 w5", seed=5, **settings_).tokens


def test_threads_and_interleaving_give_what_fresh_engines_give(tiny: flashu.ShowO2) -> None:
    recipe = flashu.FlashUConfig(understanding=flashu.UnderstandingConfig(r_LS=0.2))
    pairs = [(flashu.Engine(tiny, tiny.processor).generate("w9", steps=2).images[0], "w3")]
    calibrated = flashu.Engine(tiny, tiny.processor, recipe)
    calibrated.calibrate("generation", prompts=["w1 w2"])
    calibration = calibrated.calibrate("understanding", pairs=pairs)

    def fresh() -> flashu.Engine:
        return flashu.Engine(tiny, tiny.processor, recipe, calibration)

    prompts = [f"w{n} w{n + 1}" for n in range(4)]
    alone = [fresh().generate(p, seed=n).latents for n, p in enumerate(prompts)]
    asked = [fresh().answer(pairs[0][0], p).tokens for p in prompts]
    shared = fresh()
    got: dict[int, tuple[Tensor, list[int]]] = {}

    def work(n: int) -> None:
        torch.set_num_threads(1)
        latents = shared.generate(prompts[n], seed=n).latents
        got[n] = (latents, shared.answer(pairs[0][0], prompts[n]).tokens)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n in range(4):
        assert torch.equal(got[n][0], alone[n])
        assert got[n][1] == asked[n]


def test_layers_a_plan_skips_still_fill_a_growing_cache(tiny_engine: flashu.Engine) -> None:
    """A skipped layer's keys and values are those of its own input, at every position."""
    model = tiny_engine.model
    runner = Runner(model)
    tokens = canvas.packed([[250, 1, 2, 252]], 16).prefix
    assert tokens is not None
    with torch.inference_mode():
        x = model.embed_text(torch.tensor([[250, 1, 2, 252]]))
        done = runner.backbone(x, tokens, LayerPlan(skip=frozenset({0, 3})), keep=True)
        assert done.kv is not None
        assert len(done.kv.layers) == model.num_layers
        k, v = model.layers[0].keys_values(x, model.rope(tokens.pos))
    assert torch.equal(done.kv.layers[0][0], k)
    assert torch.equal(done.kv.layers[0][1], v)


def test_run_state_lives_in_the_run(tiny: flashu.ShowO2) -> None:
    """Generating and answering leave no attribute on any module."""
    before = {name: set(vars(m)) for name, m in tiny.named_modules()}
    engine = flashu.Engine(
        tiny, tiny.processor, flashu.FlashUConfig(understanding=flashu.UnderstandingConfig(r_LS=0.2))
    )
    image = engine.generate("w1").images[0]
    engine.calibrate("understanding", pairs=[(image, "w2")])
    engine.answer(image, "w3")
    assert {name: set(vars(m)) for name, m in tiny.named_modules()} == before
    assert isinstance(Run(Runner(tiny), exact(), "generation", 1).seen.similarity, type(None))
