"""The timed loops: equal results in exact, an instance left untouched. No time is asserted."""

from __future__ import annotations

import pytest
import torch
from tests.models.showo2.dropin.original import Original
from tests.models.showo2.dropin.speed import scenes

import flashu
from flashu.bench.dropin import time_drop_in


@pytest.fixture(scope="module")
def module() -> Original:
    return scenes()


def test_drawing(module: Original) -> None:
    attributes = dict(vars(module))
    original, exact, fast = time_drop_in(module, "t2i", repeats=2, points=9, guidance=2.0, padding=8)
    assert [original.name, exact.name, fast.name] == ["original", "exact", "FlashU"]
    assert (original.speedup.median, original.difference) == (1, 0)
    assert exact.difference <= 1e-4
    assert fast.difference > exact.difference
    assert all(len(timing.seconds.values) == len(timing.speedup.values) == 2 for timing in (original, exact, fast))
    assert vars(module) == attributes


def test_drawing_without_guidance(module: Original) -> None:
    _, exact = time_drop_in(module, "t2i", {"exact": "exact"}, repeats=1, points=5, guidance=0.0, padding=0)
    assert exact.difference <= 1e-4


def test_answering(module: Original) -> None:
    torch.manual_seed(0)
    _, exact, _ = time_drop_in(module, "mmu", repeats=1, new_tokens=12)
    assert exact.difference == 0


def test_unknown_tasks_are_refused(module: Original) -> None:
    with pytest.raises(flashu.FlashUError, match="t2i and mmu"):
        time_drop_in(module, "paint")
