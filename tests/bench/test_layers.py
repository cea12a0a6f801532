"""Released sizes with fewer decoder layers, for what all of them would take too long."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.bench.small import Ticks

from flashu.bench.measure import bench
from flashu.bench.rows import choose_rows
from flashu.bench.steps import OTHER, StepKind
from flashu.bench.subject import open_subject
from flashu.bench.tracing import Tracer
from flashu.errors import FlashUError
from flashu.evaluation.components import DECODER, LOGITS
from flashu.models.registry import families

NAMES = sorted(name for family in families() for name in family.random_sizes)


@pytest.mark.parametrize("name", NAMES)
def test_only_so_many(name: str) -> None:
    known = next(family for family in families() if name in family.random_sizes)
    meta = torch.device("meta")
    whole, _ = known.random(name, torch.bfloat16, meta, meta)
    model, _ = known.random(name, torch.bfloat16, meta, meta, 2)
    assert len(model.layers) == model.spec.layers == 2
    assert len(whole.layers) > 20
    assert model.spec.hidden == whole.spec.hidden
    with pytest.raises(FlashUError, match=f"has {len(whole.layers)} layers"):
        known.random(name, torch.bfloat16, meta, meta, 1000)


def test_the_decoder_is_composed_of_its_layers() -> None:
    tracer = Tracer(Ticks(), depth=7)
    tracer.begin(StepKind("block"))
    for name in (DECODER, LOGITS):
        with tracer.component(name):
            pass
    (span,) = tracer.collect()
    assert span.components == {OTHER: 3, DECODER: 7, LOGITS: 1}


def test_whole_runs_need_all_layers() -> None:
    subject = replace(open_subject("scenes", "t2i", steps=2), layers=3, whole=12)
    with pytest.raises(FlashUError, match="--steps-sampled"):
        bench(subject, choose_rows("generation", ["exact"]))


def test_a_checkpoint_has_its_own() -> None:
    with pytest.raises(FlashUError, match="weights of its own"):
        open_subject("scenes", "t2i", layers=2)
