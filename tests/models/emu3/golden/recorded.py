"""The tiny recorded model, and what the golden tests share."""

from __future__ import annotations

import json
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from flashu.models.emu3.config import Emu3Config, Ids, TextConfig, VQConfig, build
from flashu.models.emu3.model import Emu3
from flashu.models.emu3.vq import VQ

HERE = Path(__file__).parent
STATES, PIXELS, LOSS = 3e-4, 1e-3, 2e-4
"""Largest differences allowed on other kernels than those that recorded: of states and logits, pixels, losses."""
VISION = "model.vqmodel."


@cache
def sizes() -> dict[str, Any]:
    return json.loads((HERE / "emu3_tiny.json").read_text())


@cache
def about() -> dict[str, Any]:
    return json.loads((HERE / "emu3_tiny_golden.json").read_text())


def config() -> Emu3Config:
    text, special = sizes()["text_config"], dict(sizes()["special_ids"])
    first, last = special.pop("visual_first"), special.pop("visual_last")
    known = {name: text[name] for name in (f.name for f in fields(TextConfig)) if name in text}
    return Emu3Config(
        TextConfig(**known, rope_theta=sizes()["rope_theta"]), Ids(**special, first=first), last - first + 1
    )


def vq_config() -> VQConfig:
    return build(VQConfig, "vq", {k: v for k, v in sizes()["vq_config"].items() if k != "double_latent"})


@cache
def weights() -> dict[str, Tensor]:
    return load_file(HERE / "emu3_tiny.safetensors")


@cache
def goldens() -> dict[str, Tensor]:
    return load_file(HERE / "emu3_tiny_golden.safetensors")


def model() -> Emu3:
    made = Emu3(config())
    made.load_state_dict({name: value for name, value in weights().items() if not name.startswith(VISION)})
    return made.eval()


def vq() -> VQ:
    made = VQ(vq_config())
    made.load_state_dict(
        {name.removeprefix(VISION): value for name, value in weights().items() if name.startswith(VISION)}
    )
    return made


def close(ours: Tensor, golden: Tensor, tolerance: float = STATES) -> None:
    assert ours.shape == golden.shape
    assert float((ours - golden).detach().abs().max()) <= tolerance


def unpadded(row: Tensor, mask: Tensor) -> Tensor:
    """The real tokens of a left- or right-padded row."""
    return row[mask.bool()]


def hidden_states(model: Emu3, ids: Tensor) -> list[Tensor]:
    """What enters each layer [S, D] of one row of ids [S], and after the final norm what leaves the last."""
    from flashu.models.layers import AttentionContext

    count = len(ids)
    mask = torch.ones(count, count, dtype=torch.bool).tril()[None, None]
    x = model.embed_tokens(ids[None])
    context = AttentionContext(model.rope(torch.arange(count)[None]), mask)
    states = []
    for layer in model.layers:
        states.append(x[0])
        x, _ = layer(x, context)
    return [*states, model.norm(x)[0]]
