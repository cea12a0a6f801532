"""The model at the released sizes has exactly the keys and shapes of transformers' class."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from flashu.models.emu3.config import Emu3Config, Ids, VQConfig
from flashu.models.emu3.model import Emu3
from flashu.models.emu3.vq import VQ

MANIFEST = json.loads((Path(__file__).parent / "golden" / "emu3_manifest.json").read_text())


def test_keys_shapes_and_parameters() -> None:
    with torch.device("meta"):
        model, vq = Emu3(Emu3Config()), VQ(VQConfig())
    state = model.state_dict() | {f"model.vqmodel.{name}": value for name, value in vq.state_dict().items()}
    described = {name: [list(t.shape), str(t.dtype).removeprefix("torch.")] for name, t in state.items()}
    assert described == MANIFEST["tensors"]
    assert sum(p.numel() for part in (model, vq) for p in part.parameters()) == MANIFEST["num_parameters"]


def test_ids_are_the_released_ones() -> None:
    ids = {name.split()[0].split("<")[0]: number for name, number in MANIFEST["special_ids"].items()}
    ours, config = Ids(), Emu3Config()
    for name in ("pad", "eol", "eof", "bos", "eos", "img", "boi", "eoi"):
        assert getattr(ours, name) == ids[name]
    assert (ours.first, ours.first + config.codes - 1) == (ids["visual_first"], ids["visual_last"])
    assert ours.image == MANIFEST["special_ids"]["<image> placeholder (hf: takes the place of <|extra_0|>)"]
