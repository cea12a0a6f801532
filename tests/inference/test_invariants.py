"""The invariants (docs/design.md), by their letters: what is left out changes nothing, and state belongs to the run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import flashu
from flashu.inference.actions import Append, Draw
from flashu.inference.run import Run, complete
from flashu.inference.samplers.flow import FlowSampler
from flashu.inference.samplers.noise import Noise
from flashu.models.layers import AttentionContext
from flashu.models.showo2 import naive
from flashu.models.showo2.layout import words as text_segment
from flashu.plan import MAIN, Guidance, LayerPlan, Observations, Plan, Step
from flashu.plan.recipe import Recipe, exact
from flashu.runtime.executor import Executor
from flashu.runtime.layout import TokenLayout
from flashu.runtime.runner import Runner
from tests.fakes.masked import seeded
from tests.fakes.tokens import SIDE, TokenModel

ROUNDING = 2e-4
words = st.lists(st.integers(0, 249), min_size=1, max_size=19)


def text(ids: list[int]) -> str:
    return " ".join(f"w{n}" for n in ids)


@contextmanager
def calls(module: nn.Module, note: Callable[[Any, Any], Any]) -> Iterator[list[Any]]:
    """What ``note`` makes of the arguments and output of each call of a module."""
    noted: list[Any] = []
    handle = module.register_forward_hook(lambda _m, args, out: noted.append(note(args, out)))
    yield noted
    handle.remove()


def shapes(args: Any, out: Any) -> tuple[int, int]:
    """(rows, tokens) of a call."""
    return args[0].shape[0], args[0].shape[1]


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
    """a, b (layout), d: contexts, no padding and one vision pass draw what the original's rows draw."""
    drawn = [
        tiny_engine.with_recipe(recipe)
        .generate([text(p) for p in prompts], seed=seed, steps=4, guidance=guidance, decode=False)
        .latents
        for recipe in (exact(), Recipe(padded=True))
    ]
    assert float((drawn[0] - drawn[1]).abs().max()) < ROUNDING * guidance


@pytest.mark.parametrize("size", [(4, 12), (8, 8), (12, 6), (16, 16)])
def test_packed_equals_padded_at_any_resolution(tiny_engine: flashu.Engine, size: tuple[int, int]) -> None:
    """Other grids than the configured one resize the position table, in both layouts alike."""
    pixels = {"height": 8 * size[0], "width": 8 * size[1]}
    drawn = [
        tiny_engine.with_recipe(recipe)
        .generate(["w1 w2 w3", "w9"], steps=4, guidance=3.0, decode=False, **pixels)
        .latents
        for recipe in (exact(), Recipe(padded=True))
    ]
    assert drawn[0].shape[-2:] == size
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
    """a: eoi, eos and padding may be any tokens at all, or be cut off."""
    row = tiny_engine.processor.text.padded_row([250, *prompt, 252], 16, 60)
    start = len(prompt) + 2
    end = start + 17
    changed = row[:end] + (after * 3)[: 60 - end]
    z = Noise(5).normal(1, 4, 8, 8)
    v = velocity_at(tiny_engine.model, [row], [start], z, t)
    torch.testing.assert_close(v, velocity_at(tiny_engine.model, [changed], [start], z, t), rtol=0, atol=0)
    cut = velocity_at(tiny_engine.model, [row[:end]], [start], z, t)
    torch.testing.assert_close(v, cut, rtol=0, atol=2e-5)


def test_the_context_is_computed_once_per_layer_plan(tiny_engine: flashu.Engine) -> None:
    """a: prompts are embedded as often as there are distinct layer plans, however many forwards."""
    (skip,) = flashu.FlashUConfig(r_p=0, T_cache=1, r_LS=0.34, T_LS=4, steps=0, s_low=1).recipe().of("generation")
    with calls(tiny_engine.model.get_input_embeddings(), lambda args, out: tuple(args[0].tolist())) as embedded:
        drawn = tiny_engine.with_recipe(Recipe((skip,))).generate("w7", guidance=4.0)
    plans = {trace.plan.layers for trace in drawn.trace}
    assert len(plans) > 1
    assert sorted(embedded) == sorted([(250, 7, 252), (250, 252)] * len(plans))


def test_the_probe_sees_image_tokens_when_packed_and_all_tokens_when_padded(
    tiny_engine: flashu.Engine, golden_facts: dict
) -> None:
    """b: a choice with a name. Image-token similarities differ from whole-row ones, as the original's own numbers by
    region show."""
    regions = golden_facts["verification"]["layer_importance_by_region(step1, step5; unpruned)"]
    everything, image_only = regions["all_positions_incl_padding"][0], regions["image_tokens"][0]
    assert max(abs(a - b) for a, b in zip(everything, image_only, strict=True)) > 0.1
    prompts = [text(p[:19]) for p in golden_facts["common"]["prompts_token_ids"]]
    methods = flashu.FlashUConfig(r_p=0, T_cache=1, r_LS=0.34, steps=0, s_low=1).recipe().of("generation")
    measured = {}
    for padded in (False, True):
        drawn = tiny_engine.with_recipe(Recipe(methods, padded=padded)).generate(prompts, steps=11, guidance=5.0)
        similarity = torch.tensor([trace[0].similarity for trace in drawn.traces])
        measured[padded] = (1 - similarity.mean(0)).tolist()
    assert measured[True] == pytest.approx(everything, abs=0.05)
    assert measured[False] == pytest.approx(image_only, abs=0.05)


def test_reused_features_compute_nothing_upstream(tiny_engine: flashu.Engine) -> None:
    """c, and d: by counting calls; and computing and discarding (what the released program's forwards amount to)
    changes no latent."""
    cached = flashu.FlashUConfig(r_p=0, r_LS=0, T_cache=3, steps=0, s_low=1).recipe().of("generation")

    class Busy(Recipe):
        def plan(self, step: Step, observed: Observations, scales: Any) -> Plan:
            return replace(super().plan(step, observed, scales), probe="tokens")

    model, drawn = tiny_engine.model, []
    for recipe, forwards in ((Recipe(cached), 5), (Busy(cached), 9)):
        engine = tiny_engine.with_recipe(recipe)
        with calls(model.layers[0], shapes) as decoder, calls(model.und_trans, shapes) as embedder:
            made = engine.generate("w9", steps=9, guidance=4.0, seed=1)
        drawn.append(made.latents)
        assert [shape for shape in decoder if shape[1] == 17] == [(2, 17)] * forwards
        assert embedder == [(1, 16)] * forwards  # both branches show the same latents
        assert sum(trace.rows > 0 for trace in made.trace) == forwards
    assert torch.equal(drawn[0], drawn[1])


def test_logits_only_where_read(tiny_engine: flashu.Engine) -> None:
    """e: drawing asks for no logits at all; answering for one position per row and token."""
    with calls(tiny_engine.model.showo.lm_head, lambda args, out: tuple(args[0].shape)) as asked:
        drawn = tiny_engine.generate("w1 w2", steps=3)
        assert asked == []
        tiny_engine.answer([drawn.images[0]] * 2, ["w1", "w2 w3 w4"], max_new_tokens=4)
    assert asked == [(2, 1, 64)] * 4


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_steps_mean_forwards(tiny_engine: flashu.Engine, solver: str) -> None:
    """f, by counting decoder calls on the model itself."""
    engine = tiny_engine.with_recipe(Recipe(solver=solver))
    with calls(tiny_engine.model.layers[0], shapes) as decoder:
        drawn = engine.generate("w1 w2", steps=7)
    assert decoder == [(2, 4), *[(2, 17)] * 7]  # one prefill of both branches, then the image blocks
    assert len(drawn.trace) == 7


def draw_after(engine: flashu.Engine, contexts: list[Append], scale: float) -> Run:
    """Two forwards of an image behind contexts of a main and a guidance branch."""
    layout = engine.layout
    grid = torch.linspace(0, 1, 3)
    block = layout._block((8, 8), layout._times(grid))
    draw = Draw(Guidance({"uncond": scale}), 2, lambda n, s: FlowSampler(Noise(3).normal(4, 8, 8), grid, s, block))
    run = Run([*contexts, draw], exact(), engine.model.spec)
    with torch.inference_mode():
        complete(Executor(Runner(engine.model)), [run])
    return run


def test_equal_contexts_are_one_branch(tiny_engine: flashu.Engine) -> None:
    """g: a guidance branch that says what the main one says costs nothing, and changes nothing."""
    both = [Append((MAIN,), (text_segment([250, 7, 252]),)), Append(("uncond",), (text_segment([250, 7, 252]),))]
    with calls(tiny_engine.model.layers[0], shapes) as decoder:
        run = draw_after(tiny_engine, both, 5.0)
    assert decoder == [(1, 3), (1, 17), (1, 17)]
    assert {trace.rows for trace in run.trace} == {1}
    alone = tiny_engine.generate("w7", seed=3, steps=2, guidance=0, shift=1.0, decode=False).latents[0]
    torch.testing.assert_close(run.drawn[0], alone, rtol=0, atol=1e-5)


def test_what_branches_share_is_computed_once(tiny_engine: flashu.Engine) -> None:
    """h: the branches' common beginning goes through once, then what each says for itself."""
    shared, own = text_segment([250, 1, 2, 3, 4]), text_segment([9, 8, 252])
    contexts = [
        Append((MAIN, "uncond"), (shared,)),
        Append((MAIN,), (own,)),
        Append(("uncond",), (text_segment([252]),)),
    ]
    with calls(tiny_engine.model.layers[0], shapes) as decoder:
        run = draw_after(tiny_engine, contexts, 5.0)
    assert decoder == [(1, 5), (2, 3), (2, 17), (2, 17)]
    apart = [
        Append((MAIN,), (text_segment([250, 1, 2, 3, 4, 9, 8, 252]),)),
        Append(("uncond",), (text_segment([250, 1, 2, 3, 4, 252]),)),
    ]
    torch.testing.assert_close(run.drawn[0], draw_after(tiny_engine, apart, 5.0).drawn[0], rtol=0, atol=1e-4)


def test_questions_about_one_image_compute_it_once(tiny_engine: flashu.Engine) -> None:
    """h, of answers: the image's row goes through once for all questions."""
    image = tiny_engine.generate("w1", steps=2).images[0]
    with calls(tiny_engine.model.layers[0], shapes) as decoder, calls(tiny_engine.model.und_trans, shapes) as embedder:
        tiny_engine.answer(image, ["w1", "w2 w3", "w4"], max_new_tokens=1)
    assert embedder == [(1, 16)]
    assert [rows for rows, _ in decoder] == [1, 3]


def test_a_forced_token_needs_no_logits() -> None:
    """i: an end of line after each row of codes is fed with the code before it, and nobody asks what comes after."""
    model = seeded(TokenModel)
    asked: list[torch.Size] = []
    plain = model.logits
    model.logits = lambda hidden, codes=None: (asked.append(hidden.shape), plain(hidden, codes))[1]  # type: ignore[method-assign]
    engine = flashu.Engine(model, model.processor)  # type: ignore[arg-type]
    trace = engine.generate("w1 w2", seed=3).trace
    assert sum(step.tokens for step in trace[1:]) == SIDE * SIDE - 1 + SIDE - 1
    assert [shape[:2] for shape in asked] == [(2, 1)] * SIDE * SIDE


@settings(max_examples=8, deadline=None)
@given(prompts=st.lists(words, min_size=2, max_size=4), seed=st.integers(0, 99))
def test_an_image_does_not_depend_on_its_batch(tiny_engine: flashu.Engine, prompts: list[list[int]], seed: int) -> None:
    """j"""
    texts = [text(p) for p in prompts]
    together = tiny_engine.generate(texts, seed=seed, steps=4)
    alone = [tiny_engine.generate(t, seed=seed + n, steps=4).latents[0] for n, t in enumerate(texts)]
    torch.testing.assert_close(together.latents, torch.stack(alone), rtol=0, atol=5e-4)
    chunked = tiny_engine.generate(texts, seed=seed, steps=4, batch_size=2)
    torch.testing.assert_close(together.latents, chunked.latents, rtol=0, atol=5e-4)


@settings(max_examples=8, deadline=None)
@given(questions=st.lists(words, min_size=2, max_size=4))
def test_an_answer_does_not_depend_on_its_batch(tiny_engine: flashu.Engine, questions: list[list[int]]) -> None:
    """j"""
    texts = [text(q) for q in questions]
    images = tiny_engine.generate([f"w{n}" for n in range(len(texts))], steps=2).images
    together = tiny_engine.answer(images, texts, max_new_tokens=4)
    assert [a.tokens for a in together] == [
        tiny_engine.answer(i, t, max_new_tokens=4).tokens for i, t in zip(images, texts, strict=True)
    ]


def test_in_batches_of_one_shape_results_are_equal_bit_for_bit(tiny_engine: flashu.Engine) -> None:
    """j: whoever else is in the batch, layers skipped by each for itself."""
    skip = flashu.FlashUConfig(
        r_p=0, T_cache=1, r_LS=0.34, T_LS=4, steps=0, s_low=1,
        understanding=flashu.UnderstandingConfig(r_p=0, r_LS=0.34, T_LS=3, token_ratio=0),
    )  # fmt: skip
    for recipe in ("exact", skip):
        engine = tiny_engine.with_recipe(recipe)
        first, other = (
            engine.generate([*before, "w5 w6", *after], seed=[*[9] * len(before), 4, *[9] * len(after)])
            for before, after in ((["w1 w2"], ["w3 w4"]), ([], ["w7 w8", "w9 w9"]))
        )
        assert torch.equal(first.latents[1], other.latents[0])
        assert first.traces[1] == other.traces[0]


def test_no_step_copies_the_context(tiny_engine: flashu.Engine) -> None:
    """k: every token of an answer is written into the same memory, whose older parts stay as they are."""
    image = tiny_engine.generate("w1", steps=2).images[0]

    def note(args: Any, out: Any) -> tuple[int, Tensor]:
        k, _ = out[1]
        return k.data_ptr(), k.clone()

    with calls(tiny_engine.model.layers[3].self_attn, note) as kept:
        answer = tiny_engine.answer(image, "w3 w4", max_new_tokens=8)
    length = answer.trace[0].tokens
    steps = kept[1:]  # without the prefill
    assert len({pointer for pointer, _ in steps}) == 1
    for n, (_, k) in enumerate(steps):
        assert torch.equal(k[:, :, :length], kept[0][1])
        assert torch.equal(k[:, :, : length + n], steps[-1][1][:, :, : length + n])
        assert not bool(k[:, :, length + n + 1 :].any())


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


def test_a_stream_ends_with_an_unfinished_character(tiny: flashu.ShowO2, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that is cut off inside a character of several bytes: what there is of it comes last."""
    engine = flashu.Engine(tiny, tiny.processor)
    image = engine.generate("w1", steps=2).images[0]
    tokens = engine.answer(image, "w3 w5", max_new_tokens=3).tokens
    monkeypatch.setattr(engine.layout, "text", lambda ids: "né€"[: len(ids) - 1] + "\N{REPLACEMENT CHARACTER}")
    pieces = list(engine.stream(image, "w3 w5", max_new_tokens=3))
    assert len(tokens) == 3
    assert "".join(pieces) == "né\N{REPLACEMENT CHARACTER}"


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
    layout = TokenLayout.causal([4])
    with torch.inference_mode():
        x = model.embed_tokens(torch.tensor([[250, 1, 2, 252]]))
        done = Runner(model).walk(x, layout, LayerPlan(skip=frozenset({0, 3})), keep=True)
        assert done.kv is not None
        assert len(done.kv.layers) == len(model.layers)
        k, v = model.layers[0].keys_values(x, AttentionContext(model.rope(layout.position)))
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
