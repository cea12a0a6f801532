"""The timed loops: equal results in exact, an instance left untouched. No time is asserted."""

from __future__ import annotations

import pytest
import torch
from tests.dropin.original import Original
from tests.dropin.speed import scenes

import flashu
from flashu.bench.dropin import laps


@pytest.fixture(scope="module")
def module() -> Original:
    return scenes()


def test_drawing(module: Original) -> None:
    attributes = dict(vars(module))
    original, exact, fast = laps(module, "t2i", repeats=2, points=9, guidance=2.0, padding=8)
    assert [original.name, exact.name, fast.name] == ["original", "exact", "FlashU"]
    assert (original.speedup, original.apart) == (1, 0)
    assert exact.apart <= 1e-4
    assert fast.apart > exact.apart
    assert all(len(lap.seconds) == 2 and lap.least <= lap.speedup <= lap.most for lap in (original, exact, fast))
    assert vars(module) == attributes


def test_drawing_without_guidance(module: Original) -> None:
    _, exact = laps(module, "t2i", {"exact": "exact"}, repeats=1, points=5, guidance=0.0, padding=0)
    assert exact.apart <= 1e-4


def test_answering(module: Original) -> None:
    torch.manual_seed(0)
    _, exact, _ = laps(module, "mmu", repeats=1, new_tokens=12)
    assert exact.apart == 0


def test_unknown_tasks_are_refused(module: Original) -> None:
    with pytest.raises(flashu.FlashUError, match="t2i and mmu"):
        laps(module, "paint")
