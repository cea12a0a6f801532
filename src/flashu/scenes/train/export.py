"""Writes the shipped files of the scenes model, each atomically."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors.torch import save
from tokenizers import Tokenizer

from flashu.models.showo2.model import ShowO2

ASSETS = Path(__file__).parents[2] / "assets" / "scenes"


def export(model: ShowO2, tokenizer: Tokenizer, folder: Path = ASSETS) -> None:
    """config.json, tokenizer.json and bf16 model.safetensors; the autoencoder's file is written by its trainer."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().to("cpu", torch.bfloat16).clone() for k, v in model.state_dict().items()}
    (folder / "model.safetensors.new").write_bytes(save(state, {"format": "pt"}))
    (folder / "config.json.new").write_text(json.dumps(model.config.to_dict(), indent=2) + "\n")
    tokenizer.save(str(folder / "tokenizer.json.new"))
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        os.replace(folder / f"{name}.new", folder / name)
