"""CUDA graphs on a device."""

from __future__ import annotations

import pytest
import torch

import flashu
from tests.conftest import tiny_model
from tests.recipes import GENERATION, UNDERSTANDING


@pytest.mark.gpu
@pytest.mark.parametrize("compile", [False, True])
def test_cuda_graphs_give_what_eager_layers_give(compile: bool) -> None:
    model = tiny_model().to("cuda")
    recipe = flashu.Recipe((*GENERATION.values(), *UNDERSTANDING.values()))
    plain = flashu.Engine(model, model.processor, recipe)
    image = plain.generate("w9", steps=2).images[0]
    plain.calibrate("understanding", pairs=[(image, "w3")])
    graphed = flashu.Engine(model, model.processor, recipe, plain.calibration, compile=compile, graphs=True)
    expected = plain.generate(["w1", "w2 w3"], seed=3, steps=12).latents
    torch.testing.assert_close(graphed.generate(["w1", "w2 w3"], seed=3, steps=12).latents, expected, atol=1e-3, rtol=0)
    said = plain.answer(image, ["w1 w2", "w5"], max_new_tokens=14)
    again = graphed.answer(image, ["w1 w2", "w5"], max_new_tokens=14)
    assert [answer.tokens for answer in again] == [answer.tokens for answer in said]
