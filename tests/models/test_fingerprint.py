"""A model is known by its checkpoint however its weights are held."""

from __future__ import annotations

import pytest
import torch

import flashu
from flashu.models.weights import checkpoint_hash


@pytest.mark.parametrize("options", [{"quantize": "int8-weight"}, {"dtype": torch.bfloat16, "pack": True}])
def test_quantized_and_packed_models_keep_their_hash_and_presets(options: dict[str, object]) -> None:
    plain = flashu.ShowO2.from_pretrained("scenes")
    held = flashu.ShowO2.from_pretrained("scenes", **options)  # type: ignore[arg-type]
    assert checkpoint_hash(held) == checkpoint_hash(plain)
    assert flashu.Engine(held, held.processor, "balanced").recipe.name == "scenes-balanced"
