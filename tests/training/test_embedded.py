"""The models in the package: small, complete, and able to do what they are for on what they never trained on."""

from __future__ import annotations

import pytest

from flashu.models.registry import ASSETS, CHECKPOINTS
from flashu.scenes.world import WORLDS
from flashu.training.scenes.evaluate import score

EMBEDDED = [c.name for c in CHECKPOINTS if c.source == ASSETS / c.name]
OTHERS = [name for name in EMBEDDED if name not in WORLDS]
"""Of the small world; those named like one have their family's tests."""


def test_all_together_are_small():
    files = [path for path in ASSETS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 40e6
    assert {path.relative_to(ASSETS).parts[0] for path in files} <= {*EMBEDDED, "presets", "drafts", "adapters"}


@pytest.mark.parametrize("name", OTHERS)
def test_they_draw_and_answer(name):
    table = score(ASSETS / name, ("draw", "answer"), WORLDS["scenes"], n=4, seed=5)
    assert table["generation"] >= 0.75
    assert table["understanding"] >= 0.85
