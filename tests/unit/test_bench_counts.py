"""The bench's counts on a model: composed runs, FLOPs, bytes, and that the first row computes the same thing."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from tests.conftest import TINY
from tests.unit.bench_tiny import TASKS, Ticks, counted, lane, subject

import flashu
from flashu.bench import original, rows
from flashu.bench.flops import Reads, original_forward, original_token, size
from flashu.bench.kinds import ORIGINAL, PROMPT, Kind, compose
from flashu.bench.random_weights import named_config, random_model
from flashu.bench.summary import predicted
from flashu.bench.watch import Watch, WatchedModel
from flashu.inference.loops import original as loops
from flashu.inference.loops.decode import decode
from flashu.inference.requests import encoded, question_rows
from flashu.inference.run import Run
from flashu.models.showo2 import naive
from flashu.runtime.runner import Runner
from flashu.runtime.sampling import choose

COMPOSED = {
    "t2i": ["original", "exact", "head_cache only", "paper", "paper without ffn_prune", "quality"],
    "mmu": ["original", "exact", "layer_skip only", "paper", "paper without token_prune"],
}


@pytest.mark.parametrize("task", TASKS)
def test_sampled_counts_compose_to_those_of_a_whole_run(task: str) -> None:
    """The composition, checked to 3% where it can be checked exactly: in FLOPs."""
    about = subject(task, new_tokens=12)
    for name in COMPOSED[task]:
        found, sampled = counted(name, about, whole=False)
        _, whole = counted(name, about, whole=True)
        composed = compose(sampled.pieces, found.inside())
        exactly = sum(p.amount for p in whole.pieces if p.kind.step not in ("setup", "encode", "image"))
        assert composed == pytest.approx(exactly, rel=0.03), name
        forwards = {kind: n for kind, n in found.inside().items() if kind.step != PROMPT}
        met = Counter(p.kind for p in whole.pieces if p.kind.step not in ("setup", "encode", "image", PROMPT))
        assert met == forwards, name


@pytest.mark.parametrize("task", TASKS)
def test_counted_flops_are_those_the_shapes_say(task: str) -> None:
    about = subject(task, batch=2)
    for name in ("original", "exact", "paper"):
        found, take = counted(name, about, whole=True)
        inside = sum(p.amount for p in take.pieces if p.kind.step not in ("setup", "encode", "image"))
        assert inside == pytest.approx(predicted(found), rel=0.03), name


def test_original_flops_by_hand(tiny: flashu.ShowO2) -> None:
    """One drawing forward of the original on the tiny model, every product written out."""
    cfg, s, n, h, d = tiny.config, 19 + 16 + 5, 16, 64, 48
    decoder = 6 * (s * h * (2 * h + 2 * 2 * 16) + 2 * s * s * h + 3 * s * h * 96)
    logits = s * h * 256
    vision = n * 3 * (4 * 32 * 32 + 2 * n * 32 + 2 * 32 * 48) + n * 16 * (32 + h) + n * ((32 + h) * h + h * h)
    head = 3 * (s * d * (2 * d + 2 * 2 * 8) + 2 * s * s * d + 3 * s * d * 56 + 6 * d * d) + s * (h * d + d * d)
    out = s * d * 16 + 2 * d * d
    assert original_forward(cfg, 1, s, n) == 2 * (decoder + logits + vision + head + out)
    assert original_token(cfg, 1, s) == 2 * (decoder + logits)


def test_bytes_are_each_weight_once(tiny: flashu.ShowO2) -> None:
    reads = Reads(tiny, cached=10)
    whole = reads.of(Kind(ORIGINAL), drawing=True)
    outside = size(tiny.time_embed, tiny.time_embed_proj, tiny.showo.model.norm)
    assert whole == size(tiny) - outside
    assert reads.of(Kind("denoise", pruned=0.5), True) == whole - reads.logits - 6 * 48 * 3 * 64 * 4
    assert reads.of(Kind("decode"), False) - reads.of(Kind("prefill"), False) == 10 * 6 * 2 * 2 * 16 * 4


def test_the_original_draws_and_says_what_the_exact_engine_does() -> None:
    """The first row computes the same thing: same latents at equal forwards, same tokens."""
    about = subject("t2i", steps=6)
    watched = WatchedModel(about.model, Watch(Ticks()))
    exact = lane("exact", about, Ticks())
    exact.steps = 5  # type: ignore[attr-defined]
    torch.testing.assert_close(original.draw(watched, about, 5), exact.draw(), rtol=0, atol=1e-3)
    seen = subject("mmu", new_tokens=5)
    tokens = original.answer(WatchedModel(seen.model, Watch(Ticks())), seen)
    said: list[int] = []
    run = Run(Runner(seen.model), rows.exact(), "understanding", 5)
    x, rows_of = question_rows(seen.model, encoded(seen.model, seen.processor, seen.pixels()), [seen.question], [0])
    for (token,) in decode(run, x, rows_of, choose, None):
        said += [] if token is None else [token]
    assert tokens[0].tolist() == said


def test_the_originals_mask_grows_by_one_that_nobody_sees() -> None:
    seen = torch.tensor([[1, 0, 0], [1, 1, 1], [1, 1, 1]], dtype=torch.bool)[None, None]
    grown = loops.with_one_more(loops.additive(seen, torch.float32)) == 0
    assert grown[0, 0].long().tolist() == [[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]]


def test_a_watched_model_is_the_same_model(tiny: flashu.ShowO2) -> None:
    watched = WatchedModel(tiny, Watch(Ticks()))
    assert all(a is b for a, b in zip(tiny.parameters(), watched.parameters(), strict=True))
    assert "watch" not in vars(tiny)


def test_a_released_sizes_model_is_built_once_in_its_dtype() -> None:
    config = named_config("showo2-1.5b")
    assert (config.llm.hidden_size, config.image_latent_height) == (1536, 27)
    made = random_model(TINY, torch.bfloat16, torch.device("cpu"))
    assert made.dtype == torch.bfloat16
    assert made.showo.lm_head.weight is made.showo.model.embed_tokens.weight
    assert not any(value.is_meta for value in (*made.parameters(), *made.buffers()))
    ids = torch.arange(40)[None]
    where = torch.tensor([[[2, 17]]])
    with torch.inference_mode():
        made_of = (made, ids, torch.randn(1, 4, 8, 8), torch.rand(1), naive.omni_mask(40, where), where)
        assert all(part.isfinite().all() for part in naive.forward(*made_of))
