"""Timing: every row on a small model of random weights, and what the original's forwards cost."""

from __future__ import annotations

import pytest
import torch

from flashu.bench import measure
from flashu.bench.ceiling import Ceiling
from flashu.bench.measure import bench
from flashu.bench.rows import choose_rows
from flashu.bench.steps import ORIGINAL
from flashu.bench.subject import Subject, subject_of, task_of
from flashu.models.defaults import GenerationDefaults
from flashu.models.family import TimedReference
from flashu.models.showo.config import LLMConfig, ShowOConfig
from flashu.models.showo.magvit import MagVit
from flashu.models.showo.processor import Processor
from flashu.models.showo.random import NAMED, named_config, random_model
from flashu.models.showo.reference import Reference
from flashu.models.showo.text import ChatTemplate, SpecialIds, Text
from flashu.scenes import tokenizer


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SHORTEST", 0.0)
    monkeypatch.setattr(measure, "measure_ceiling", lambda *_: Ceiling(1e12, 1e10, 64, 1 << 20))


def subject(task: str, batch: int = 1) -> Subject:
    config = ShowOConfig(LLMConfig(200 + 10 + 256 + 1, 64, 96, 4, 4), 200, 10, 256, 16, 40)
    codec = MagVit(32, 8, ((1, 1), (1, 1)), ((1, 1), (1, 1))).eval()
    text = Text(tokenizer.build(), SpecialIds.behind(200, 150, 150), ChatTemplate("", "", ""), config.max_text)
    around = Processor(text, codec, GenerationDefaults(6, 5.0, 1.0, 8, 8))
    model = random_model(config, torch.float32, torch.device("cpu"))
    return subject_of("tiny", model, around, task, batch=batch, new_tokens=6)


@pytest.mark.parametrize("sampled", [False, True])
def test_drawing(sampled: bool) -> None:
    rows = choose_rows(task_of("t2i"), ["original", "exact", "ffn_prune only"])
    report = bench(subject("t2i"), rows, repeats=1, sampled=sampled, check=sampled)
    original, exact, _ = report.rows
    assert [row.note for row in report.rows] == ["", "", ""]
    assert original.forwards == exact.forwards == 6
    for row in (original, exact):
        assert row.flops == pytest.approx(row.flops_predicted, rel=0.05)
    # Rows of 41 + 18 tokens and all logits, where 18 tokens and 16 x 256 logits will do.
    assert original.flops > 2 * exact.flops


def test_answering() -> None:
    rows = choose_rows(task_of("mmu"), ["original", "exact", "paper"])
    original, exact, _ = bench(subject("mmu"), rows, repeats=1, sampled=True).rows
    assert {kind["kind"]: kind["count"] for kind in original.kinds}[ORIGINAL] == 6
    assert original.flops > 3 * exact.flops


def test_a_batch_is_drawn_and_answered_together() -> None:
    about = subject("t2i", batch=2)
    reference = Reference(about.model, about.processor)  # type: ignore[arg-type]
    assert isinstance(reference, TimedReference)
    requests = about.images_to_draw(4)
    together = reference.latents(requests)
    assert torch.equal(together[1], reference.latents(requests[1:])[0])
    assert reference.latents(requests, only=[0, 2]).shape == together.shape


@pytest.mark.parametrize("name", NAMED)
def test_released_sizes(name: str) -> None:
    assert named_config(name).llm == LLMConfig(58498)
    assert named_config(name).image_tokens == {"showo-256": 256, "showo-512": 1024}[name]
