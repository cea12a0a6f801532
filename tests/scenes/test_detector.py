"""The detector on renders."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from flashu.scenes.detector import UNKNOWN, agrees, detect
from flashu.scenes.sampler import FAMILIES, held_scene, training_scene
from flashu.scenes.world import render


@pytest.fixture(scope="module")
def held():
    rng = np.random.default_rng(123_456)
    made = [held_scene(rng) for _ in range(300)] + [training_scene(f, rng) for f in np.resize(FAMILIES, 100)]
    return made, render(made)


def test_detector_on_held_out_renders(held):
    scenes, images = held
    assert np.mean([agrees(f, s) for f, s in zip(detect(images), scenes, strict=True)]) >= 0.99


def test_detector_takes_every_kind_of_image(held):
    _, images = held
    as_pil = detect([Image.fromarray(images[0])])
    assert as_pil == detect(images[:1]) == detect(torch.from_numpy(images[:1]).permute(0, 3, 1, 2) / 127.5 - 1)
    with pytest.raises(ValueError, match="64x64"):
        detect([np.zeros((32, 32, 3), np.uint8)])


def test_detector_calls_a_smear_unknown(held):
    smear = np.full((1, 64, 64, 3), 232, np.uint8)
    smear[0, 2:14, 2:14] = np.random.default_rng(0).integers(0, 255, (12, 12, 3))
    assert [o.shape for o in detect(smear)[0]] == [UNKNOWN]
    assert detect(np.full((1, 64, 64, 3), 232, np.uint8)) == [[]]


def test_detected_centres_are_within_a_third_of_a_pixel(held):
    scenes, images = held
    for found, scene in zip(detect(images[:50]), scenes, strict=False):
        for seen, real in zip(found, scene.objects, strict=True):
            assert np.abs(np.subtract(seen.centre, real.centre)).max() < 0.34
