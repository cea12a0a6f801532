"""Every recipe of the shared list on a tiny BAGEL, for drawing, editing and answering."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

import flashu
from flashu import Recipe
from tests.models.bagel.test_load import official  # noqa: F401
from tests.recipes import BASELINES, GENERATION, UNDERSTANDING, subsets

DRAWING = subsets(GENERATION) | {method.name: Recipe((method,), method.name) for method in BASELINES}
PICTURE = Image.new("RGB", (64, 64), (200, 30, 30))


@pytest.fixture(scope="module")
def engine(official):  # noqa: F811
    """Calibrated once for all."""
    opened = flashu.load(official)
    opened.calibrate("generation", prompts=["a red circle"])
    opened.calibrate("understanding", pairs=[(PICTURE, "what is it?")])
    return opened


@pytest.mark.parametrize("name", DRAWING)
def test_drawing_and_editing(engine, name):
    own = engine.with_recipe(DRAWING[name])
    drawn = own.generate("a red circle", seed=1, steps=6, height=32, width=32, decode=False)
    assert drawn.latents.isfinite().all()
    edited = own.edit(PICTURE, "make it blue", seed=1, steps=4, height=32, width=32, decode=False)
    assert edited.latents.isfinite().all()
    # A drawing does not depend on its batch.
    both = own.generate(["a blue cross", "a red circle"], seed=[5, 1], steps=6, height=32, width=32, decode=False)
    assert torch.allclose(both.latents[1], drawn.latents[0], atol=1e-4)


@pytest.mark.parametrize("name", subsets(UNDERSTANDING))
def test_answering(engine, name):
    own = engine.with_recipe(subsets(UNDERSTANDING)[name])
    assert own.answer(PICTURE, "what is it?", max_new_tokens=4).tokens
