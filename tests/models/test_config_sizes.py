"""Config files whose numbers no model has: refused at once, before anything is built of them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import flashu
from flashu.errors import CheckpointError, FlashUError
from flashu.models.registry import ASSETS
from flashu.models.small_vq import SmallVQ
from flashu.models.weights import read_weights

NESTED = {
    "scenes": ("llm", "num_hidden_layers"),
    "scenes-hard": ("head", "num_layers"),
    "scenes-bagel": ("vit", "num_hidden_layers"),
    "scenes-showo": ("llm", "hidden_size"),
    "scenes-emu3": ("text", "vocab_size"),
}


def changed(folder: Path, name: str, change: Any) -> Path:
    """A copy of an embedded model whose config.json ``change`` has altered; the other files are links."""
    for file in (ASSETS / name).iterdir():
        if file.name != "config.json":
            (folder / file.name).symlink_to(file)
    data = json.loads((ASSETS / name / "config.json").read_text())
    change(data)
    (folder / "config.json").write_text(json.dumps(data))
    return folder


@pytest.mark.parametrize("value", [10**9, 2**40, 2**70, -1, 0, 2.5, "7", None, True, [1], float("nan")])
@pytest.mark.parametrize("name", NESTED)
def test_numbers_that_no_model_has(name: str, value: Any, tmp_path: Path) -> None:
    part, field = NESTED[name]
    folder = changed(tmp_path, name, lambda data: data["config"][part].update({field: value}))
    began = time.perf_counter()
    with pytest.raises(CheckpointError, match=field):
        flashu.load(folder, device="cpu")
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize("name", ["scenes", "scenes-bagel", "scenes-showo"])
@pytest.mark.parametrize("value", [-1, 10**6, "5", None])
def test_special_ids_beyond_the_vocabulary(name: str, value: Any, tmp_path: Path) -> None:
    folder = changed(tmp_path, name, lambda data: data["special_ids"].update(eoi=value))
    with pytest.raises(CheckpointError, match="eoi"):
        flashu.load(folder, device="cpu")


def test_tensors_without_plain_values(tmp_path: Path) -> None:
    file = tmp_path / "pytorch_model.bin"
    for strange in (torch.eye(3).to_sparse(), torch.empty(3, device="meta")):
        torch.save({"fine": torch.ones(2), "strange": strange}, file)
        with pytest.raises(CheckpointError, match="strange"):
            read_weights([file])


def test_an_image_tokenizer_that_is_none(tmp_path: Path) -> None:
    file = tmp_path / "vq.safetensors"
    file.write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="safetensors"):
        SmallVQ.load(file)


def test_messages_do_not_steer_a_terminal() -> None:
    said = str(FlashUError("missing: \x1b[31mred\x07\nand \u202e back"))
    assert said == "missing: \\x1b[31mred\\x07\nand \\u202e back"
