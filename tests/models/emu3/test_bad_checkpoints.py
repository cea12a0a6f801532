"""Damaged and wrong checkpoints: each is refused in one clear sentence, and nothing is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import flashu
from flashu.errors import CheckpointError
from tests.models.emu3 import checkpoints

Change = Callable[[Path], Any]


def config(**changes: Any) -> Change:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        data = json.loads(file.read_text())
        for name, value in changes.items():
            part, _, leaf = name.rpartition("__")
            (data[part] if part else data)[leaf] = value
        file.write_text(json.dumps(data))

    return change


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Change:
    def changed(folder: Path) -> None:
        held = load_file(folder / "model.safetensors")
        change(held)
        save_file(held, folder / "model.safetensors")

    return changed


NORM = "model.text_model.norm.weight"
QUANT = "model.vqmodel.quant_conv.conv.bias"
BAD: dict[str, tuple[Change, str]] = {
    "a missing layer": (tensors(lambda held: held.pop(NORM)), f"1 missing: {NORM}"),
    "a missing part of the image tokenizer": (tensors(lambda held: held.pop(QUANT)), "1 missing: quant_conv.conv.bias"),
    "a strange tensor": (tensors(lambda held: held.update(odd=torch.zeros(2))), "1 unexpected"),
    "a mis-shaped table": (
        tensors(lambda held: held.update({"lm_head.weight": torch.zeros(299, 64)})),
        "lm_head.weight [299, 64] where the model has [300, 64]",
    ),
    "values that are not numbers": (
        tensors(lambda held: held.update({NORM: torch.full((64,), float("nan"))})),
        "1 with NaN",
    ),
    "a vocabulary without a mark": (
        lambda folder: config(vocabulary_map={"<image>": 3})(folder),
        "the vocabulary_map lacks",
    ),
    "another number of codes": (config(vq_config__codebook_size=64, text_config__vocab_size=230), "beyond the 230"),
    "codes that are no run": (config(vq_config__codebook_size=200), "no run of 200 visual tokens"),
    "another architecture": (config(text_config__hidden_act="gelu"), "not Emu3's architecture"),
    "scaled positions": (
        config(text_config__rope_parameters={"rope_theta": 1e6, "rope_type": "yarn"}),
        "not Emu3's architecture",
    ),
    "heads that do not divide": (config(text_config__num_attention_heads=5), "cannot be built|can be built"),
    "another model": (config(model_type="llama"), "llama"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "neither tokenizer.json nor emu3.tiktoken"),
    "a damaged file": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"0" * 100),
        "not a whole safetensors file",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_refused(name: str, tmp_path: Path) -> None:
    change, says = BAD[name]
    change(checkpoints.as_transformers(tmp_path))
    with pytest.raises(CheckpointError, match=says.replace("[", r"\[").replace("]", r"\]")):
        flashu.load(tmp_path)


def test_no_image_tokenizer(tmp_path: Path) -> None:
    checkpoints.as_transformers(tmp_path)
    tensors(lambda held: [held.pop(name) for name in list(held) if "vqmodel" in name])(tmp_path)
    with pytest.raises(CheckpointError, match="autoencoder=None"):
        flashu.load(tmp_path)
    blind = flashu.Emu3.from_pretrained(tmp_path, autoencoder=None)
    assert blind.processor is not None
    assert blind.processor.vae is None


def test_the_wrong_image_tokenizer(tmp_path: Path) -> None:
    folder = checkpoints.as_transformers(tmp_path / "a")
    with pytest.raises(CheckpointError, match="not Emu3's image tokenizer"):
        flashu.Emu3.from_pretrained(folder, autoencoder=folder)


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    folder = checkpoints.as_transformers(tmp_path)
    from flashu.scenes.tokenizer import build

    build().save(str(folder / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="do not belong together"):
        flashu.load(folder)


def test_a_damaged_vocabulary(tmp_path: Path) -> None:
    folder = checkpoints.as_authors(tmp_path, vocabulary=False)
    (folder / "emu3.tiktoken").write_text("not base64 at all\n")
    with pytest.raises(CheckpointError, match="not a file of tokens"):
        flashu.load(folder)
    checkpoints.tiktoken(folder / "emu3.tiktoken", 100)
    with pytest.raises(CheckpointError, match="not complete"):
        flashu.load(folder)
