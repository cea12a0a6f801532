"""Tiny checkpoint folders in the official layout, to be read or damaged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from flashu.models import hub
from flashu.models.showo import official
from tests.models.showo.golden.recorded import HERE, NAME, SIZES, tiny_config, tokenizer

OFFICIAL: dict[str, Any] = {
    "_class_name": "Showo",
    "w_clip_vit": False,
    "vocab_size": SIZES["vocab_size"],
    "llm_vocab_size": SIZES["llm_vocab_size"],
    "llm_model_path": "microsoft/phi-1_5",
    "codebook_size": SIZES["codebook_size"],
    "num_vq_tokens": SIZES["num_vq_tokens"],
    "load_from_showo": True,
    "mask_token_id": SIZES["mask_token_id"],
}
ENDS = "<|endoftext|>"


def official_folder(folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Path:
    """Writes config.json and the tokenizer. The language model it names stands for a tiny one, and nothing reaches the
    network."""
    tiny = tiny_config().llm
    monkeypatch.setattr(official, "LLMConfig", lambda vocabulary: replace(tiny, vocab_size=vocabulary))

    def offline(name: str, **_: Any) -> Path:
        raise ConnectionError(f"offline, cannot reach {name}")

    monkeypatch.setattr(hub, "snapshot_download", offline)
    (folder / "config.json").write_text(json.dumps(OFFICIAL | changes))
    words = json.loads(tokenizer().to_str())
    vocabulary = words["model"]["vocab"]
    del vocabulary[f"w{SIZES['special_ids']['<|eot|>']}"]
    vocabulary[ENDS] = SIZES["special_ids"]["<|eot|>"]
    (folder / "tokenizer.json").write_text(json.dumps(words))
    return folder


def state() -> dict[str, Tensor]:
    return load_file(HERE / f"{NAME}.safetensors")


def write(layout: str, weights: dict[str, Tensor], folder: Path) -> None:
    names = list(weights)
    if layout == "bin":
        torch.save(weights, folder / "pytorch_model.bin")
    elif layout == "safetensors":
        save_file(weights, folder / "model.safetensors")
    else:
        shards = {f"pytorch_model-{k + 1:05}-of-00003.bin": names[k::3] for k in range(3)}
        for file, keys in shards.items():
            torch.save({n: weights[n].clone() for n in keys}, folder / file)
        index = {"metadata": {}, "weight_map": {n: file for file, keys in shards.items() for n in keys}}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
