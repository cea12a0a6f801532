"""The original's loops give what the runtime gives, and every row of a benchmark runs on made-up weights."""

from __future__ import annotations

import pytest
import torch

from flashu.bench.measure import bench
from flashu.bench.rows import choose_rows
from flashu.bench.steps import ORIGINAL, ORIGINAL_TOKEN
from flashu.bench.subject import ONE_LAYER, Subject, subject_of, task_of
from flashu.inference.actions import DrawRequest
from flashu.inference.engine import Engine
from flashu.models.defaults import GenerationDefaults
from flashu.models.janus.config import Ids, JanusConfig, TextConfig, VisionConfig, VQConfig
from flashu.models.janus.processor import Processor
from flashu.models.janus.random import NAMED, random_model, random_vq
from flashu.models.janus.reference import Reference
from flashu.models.janus.text import Template, Text
from flashu.scenes import tokenizer

CPU = torch.device("cpu")
CONFIG = JanusConfig(
    TextConfig(400, 64, 96, 4, 4, 2, 512),
    VisionConfig(24, 2, 3, 32, 8),
    VQConfig(6, 64, 8, 32, (1, 1, 2), 1, projection_dim=48),
    Ids(*range(100, 106)),
)


def parts(one_layer: bool = False) -> tuple[object, Processor]:
    text = Text(tokenizer.build(), CONFIG.ids, Template("", "", ""))
    defaults = GenerationDefaults(16, 5.0, 1.0, 16, 16, max_new_tokens=6)
    torch.manual_seed(1)
    model = random_model(CONFIG, torch.float32, CPU, one_layer)
    return model, Processor(text, random_vq(CPU, CONFIG.vq), defaults, side=32)


def subject(task: str, one_layer: bool = False) -> Subject:
    model, processor = parts(one_layer)
    return subject_of("tiny", model, processor, task, new_tokens=6)  # type: ignore[arg-type]


@pytest.mark.parametrize("guidance", [5.0, 1.0])
def test_the_originals_loops(guidance: float) -> None:
    model, processor = parts()
    original, exact = Reference(model, processor), Engine(model, processor)  # type: ignore[arg-type]
    prompts = ["a red circle", "a blue square above a green triangle"]
    ours = exact.generate(prompts, seed=3, guidance=guidance)
    requests = [DrawRequest(prompt, seed, None, guidance) for prompt, seed in zip(prompts, ours.seeds, strict=True)]
    assert torch.equal(original.latents(requests), ours.latents)
    one = original.generate(prompts[0], seed=ours.seeds[0], guidance=guidance)
    assert torch.equal(one.latents, ours.latents[:1])
    assert [(s.tokens, s.past) for s in one.traces[0]] == [(s.tokens, s.past) for s in ours.traces[0]]
    picture = torch.rand(3, 20, 32, generator=torch.Generator().manual_seed(0))
    asked, told = (engine.answer(picture, "is a circle red ?") for engine in (original, exact))
    assert asked.tokens == told.tokens
    assert len(asked.trace) == len(told.trace)


@pytest.mark.parametrize("one_layer", [False, True])
def test_drawing(one_layer: bool) -> None:
    rows = choose_rows(task_of("t2i"), ["original", "exact", "ffn_prune only"])
    report = bench(subject("t2i", one_layer), rows, repeats=1, sampled=True, check=True)
    assert [row.note for row in report.rows] == ["", "", ""]
    original, exact, pruned = report.rows
    counts = {kind["kind"]: kind["count"] for kind in original.kinds if "original" in kind["kind"]}
    assert counts == {f"{ORIGINAL}, guided": 1, f"{ORIGINAL_TOKEN}, guided": 15}
    assert exact.forwards == original.forwards == 16
    for row in (original, exact):
        # The plan counts a plain head; the codes' second matrix and their aligner weigh in so small a model.
        assert row.flops == pytest.approx(row.flops_predicted, rel=0.15)
    assert pruned.flops < exact.flops
    assert (ONE_LAYER in report.subject["weights"]) == one_layer


def test_answering() -> None:
    report = bench(subject("mmu"), choose_rows(task_of("mmu"), ["original", "exact", "paper"]), repeats=1, sampled=True)
    original, exact, _ = report.rows
    counts = {kind["kind"]: kind["count"] for kind in original.kinds}
    assert (counts[ORIGINAL], counts[ORIGINAL_TOKEN]) == (1, 5)
    assert exact.flops == pytest.approx(original.flops, rel=0.15)  # of the tower, the runtime's row counts its forward


def test_released_sizes() -> None:
    counts = {"janus-pro-1b": 2.0e9, "janus-pro-7b": 7.3e9}
    for name, config in NAMED.items():
        with torch.device("meta"):
            from flashu.models.janus.model import Janus

            assert sum(p.numel() for p in Janus(config).parameters()) == pytest.approx(counts[name], rel=0.1)
