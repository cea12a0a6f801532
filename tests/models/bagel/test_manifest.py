"""The model at the real size has exactly the original's keys, shapes and non-persistent buffers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from flashu.models.bagel.model import Bagel
from flashu.models.bagel.official import official_config

MANIFEST = json.loads((Path(__file__).parent / "golden" / "bagel_7b_mot_manifest.json").read_text())


@pytest.fixture(scope="module")
def config():
    vit = MANIFEST["vit_config"] | {"num_hidden_layers": MANIFEST["vit_config"]["num_hidden_layers"] + 1}
    return official_config(MANIFEST["llm_config"], vit)


def test_keys_and_shapes(config):
    with torch.device("meta"):
        model = Bagel(config)
    folded = MANIFEST["state_dict"].items()
    expected = {name.replace("*", str(i)): tuple(shape) for name, (n, shape) in folded for i in range(n)}
    assert {name: tuple(t.shape) for name, t in model.state_dict().items()} == expected
    assert len(expected) == MANIFEST["num_state_dict_keys"]
    buffers = {name for name, _ in model.named_buffers()}
    assert buffers == set(MANIFEST["non_persistent"])


def test_the_released_sizes_are_the_defaults(config):
    assert config == type(config)()
