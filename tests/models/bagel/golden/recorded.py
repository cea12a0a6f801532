"""The recorded tensors of the original program, and the tiny model that they are of."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from flashu.models.bagel.config import BagelConfig
from flashu.models.bagel.model import Bagel
from flashu.models.bagel.official import official_config

HERE = Path(__file__).parent


@cache
def about() -> dict[str, Any]:
    """What was recorded, and how."""
    return json.loads((HERE / "bagel_tiny_golden.json").read_text())


@cache
def tensors() -> dict[str, Tensor]:
    return load_file(HERE / "bagel_tiny_golden.safetensors")


@cache
def config() -> BagelConfig:
    data = json.loads((HERE / "bagel_tiny.json").read_text())
    # Here the layers of the ViT that run are counted, one fewer than in a released file.
    vit = data["vit_config"] | {"num_hidden_layers": data["vit_config"]["num_hidden_layers"] + 1}
    sizes = {"vae_config": {"z_channels": data["vae_z_channels"], "downsample": data["vae_downsample"]}}
    return official_config(data["llm_config"], vit, data | sizes)


@cache
def model() -> Bagel:
    tiny = Bagel(config())
    tiny.load_state_dict(load_file(HERE / "bagel_tiny.safetensors"))
    return tiny.eval().requires_grad_(False)


def tolerance(name: str) -> float:
    return about()["suggested_tolerances"][name]


def close(mine: Tensor, golden: Tensor, atol: float) -> None:
    assert mine.shape == golden.shape
    assert (mine - golden).abs().max() <= atol


def ids(name: str) -> list[int]:
    """Of "prompt", "prompt2", "edit_text", "question" or "think_system_prompt", without specials."""
    return about()["common"][f"{name}_ids"]


def special(name: str) -> int:
    return about()["common"]["special_ids"][name]


MARKERS = (252, 253)


def text(name: str) -> list[int]:
    """A text block."""
    return [special("bos_token_id"), *ids(name), special("eos_token_id")]


def reading_order(x: Tensor) -> Tensor:
    """Our order of a latent block's tokens, [latents, marker, marker], as the original's, [marker, latents, marker]."""
    return torch.cat((x[..., -2:-1, :], x[..., :-2, :], x[..., -1:, :]), dim=-2)
