"""The model at the released sizes has exactly the original's keys and shapes."""

from __future__ import annotations

import json

import pytest
import torch

from flashu.models.showo.config import LLMConfig, ShowOConfig
from flashu.models.showo.model import ShowO
from tests.models.showo.golden.recorded import HERE

MANIFEST = json.loads((HERE / "showo1_phi15_manifest.json").read_text())


@pytest.mark.parametrize("clip", [None, 1024])
def test_keys_and_shapes(clip: int | None) -> None:
    with torch.device("meta"):
        model = ShowO(ShowOConfig(LLMConfig(58498), clip_size=clip))
    expected = {k: v for k, v in MANIFEST["state_dict"].items() if clip or not k.startswith("mm_projector")}
    assert {name: list(value.shape) for name, value in model.state_dict().items()} == expected
    total = MANIFEST["total_params" if clip else "total_params_without_mm_projector"]
    assert sum(p.numel() for p in model.parameters()) == total
    names = LLMConfig.__dataclass_fields__
    assert model.config.llm == LLMConfig(**{k: v for k, v in MANIFEST["phi_config"].items() if k in names})
    assert model.config.mask == MANIFEST["showo_config"]["mask_token_id"]
