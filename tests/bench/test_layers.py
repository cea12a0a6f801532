"""Released sizes with fewer decoder layers, for what all of them would take too long."""

from __future__ import annotations

import pytest
import torch

from flashu.bench.subject import open_subject
from flashu.errors import FlashUError
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


def test_a_checkpoint_has_its_own() -> None:
    with pytest.raises(FlashUError, match="weights of its own"):
        open_subject("scenes", "t2i", layers=2)
