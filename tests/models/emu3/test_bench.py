"""Timing: every row on a small model of random weights, and what the original's passes cost."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from flashu.bench.measure import bench
from flashu.bench.rows import choose_rows
from flashu.bench.steps import ORIGINAL, ORIGINAL_TOKEN
from flashu.bench.subject import ONE_LAYER, PROMPT, Subject, subject_of, task_of, turned
from flashu.bench.table import tabulated
from flashu.cli.output import out
from flashu.models.defaults import GenerationDefaults
from flashu.models.emu3.config import Emu3Config, Ids, TextConfig, VQConfig
from flashu.models.emu3.model import Emu3
from flashu.models.emu3.processor import Processor
from flashu.models.emu3.random import SPARE, random_model, random_vq
from flashu.models.emu3.text import Template, Text
from flashu.models.random_weights import fits
from flashu.scenes import tokenizer

TEXT = TextConfig(400, 64, 96, 4, 4, 2, 512)
CPU = torch.device("cpu")


def subject(task: str, one_layer: bool = False) -> Subject:
    config = Emu3Config(TEXT, Ids(*range(100, 110)), 256)
    small = VQConfig(256, base_channels=32, channel_multiplier=(1, 1), num_res_blocks=1, hidden_size=32)
    text = Text(tokenizer.build(), config.ids, Template("", "", "", turned(PROMPT, 3), ""), 64)
    around = Processor(text, random_vq(CPU, small), GenerationDefaults(16, 3.0, 1.0, 8, 8), area=(64, 256))
    model = random_model(config, torch.float32, CPU, one_layer)
    return subject_of("tiny", model, around, task, new_tokens=6)


@pytest.mark.parametrize("one_layer", [False, True])
def test_drawing(one_layer: bool) -> None:
    asked = subject("t2i", one_layer)
    rows = choose_rows(task_of("t2i"), ["original", "exact", "ffn_prune only"])
    report = bench(asked, rows, repeats=1, sampled=True, check=True)
    assert [row.note for row in report.rows] == ["", "", ""]
    original, exact, pruned = report.rows
    # Two passes for each of h(w+1)+3 tokens, the first of each branch a prefill, where 16 forwards will do.
    assert {kind["kind"]: kind["count"] for kind in original.kinds if "original" in kind["kind"]} == {
        ORIGINAL: 2,
        ORIGINAL_TOKEN: 2 * (4 * 5 + 3) - 2,
    }
    assert exact.forwards == 16
    assert original.flops == pytest.approx(original.flops_predicted, rel=0.1)
    assert exact.flops == pytest.approx(exact.flops_predicted, rel=0.1)
    assert pruned.flops < exact.flops < original.flops
    assert (ONE_LAYER in report.subject["weights"]) == one_layer
    out().print(tabulated(report))


def test_answering() -> None:
    report = bench(subject("mmu"), choose_rows(task_of("mmu"), ["original", "exact", "paper"]), repeats=1, sampled=True)
    original, exact, _ = report.rows
    counts = {kind["kind"]: kind["count"] for kind in original.kinds}
    assert counts[ORIGINAL] == 1
    assert counts[ORIGINAL_TOKEN] == 5
    assert exact.flops < original.flops


def test_where_memory_is_short() -> None:
    small = Emu3Config(TEXT, codes=16, ids=Ids(*range(100, 110)))
    assert fits(lambda: Emu3(small), torch.bfloat16, CPU, SPARE)
    layers = replace(Emu3Config().text, num_hidden_layers=1000)
    assert not fits(lambda: Emu3(replace(Emu3Config(), text=layers)), torch.bfloat16, CPU, SPARE)
    model = random_model(Emu3Config(TEXT, codes=16, ids=Ids(*range(100, 110))), torch.bfloat16, CPU, one_layer=True)
    assert len(model.layers) == TEXT.num_hidden_layers
    assert sum(p.numel() for p in model.layers[0].parameters()) == sum(p.numel() for p in model.layers.parameters())
