"""The recorded runs of the original Show-o class, and the tiny model that they are of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from flashu.models.showo.config import LLMConfig, ShowOConfig
from flashu.models.showo.model import ShowO

HERE = Path(__file__).parent
NAME = "showo1_tiny"
TOLERANCE = 3e-5
"""Largest difference of logits, hidden states and losses allowed."""
ABOUT: dict[str, Any] = json.loads((HERE / f"{NAME}_golden.json").read_text())["common"]
SIZES: dict[str, Any] = json.loads((HERE / f"{NAME}.json").read_text())
IDS = {name.strip("<|>"): value for name, value in SIZES["special_ids"].items()}


def goldens() -> dict[str, Tensor]:
    return load_file(HERE / f"{NAME}_golden.safetensors")


def tiny_config(**changes: Any) -> ShowOConfig:
    llm = LLMConfig(**{name: SIZES["phi_config"][name] for name in LLMConfig.__dataclass_fields__})
    names = ("llm_vocab_size", "num_new_special_tokens", "codebook_size", "num_vq_tokens", "max_seq_length_text")
    return ShowOConfig(llm, *(SIZES[name] for name in names), **changes)


def tiny_model(**changes: Any) -> ShowO:
    model = ShowO(tiny_config(**changes))
    model.load_state_dict(load_file(HERE / f"{NAME}.safetensors"))
    return model.eval().requires_grad_(False)


def close(ours: Tensor, golden: Tensor, tolerance: float = TOLERANCE) -> None:
    assert ours.shape == golden.shape
    assert float((ours - golden).abs().max()) <= tolerance
