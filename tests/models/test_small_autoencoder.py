"""The small autoencoder: what it was trained for still holds of the shipped weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flashu.models.registry import ASSETS
from flashu.models.small_autoencoder import FILE, SmallAutoencoder, to_tensor, to_uint8
from flashu.scenes.detector import agrees, detect
from flashu.scenes.sampler import FAMILIES, held_scene, training_scene
from flashu.scenes.world import render


@pytest.fixture(scope="module")
def held():
    rng = np.random.default_rng(123_456)
    made = [held_scene(rng) for _ in range(300)] + [training_scene(f, rng) for f in np.resize(FAMILIES, 100)]
    return made, render(made)


@pytest.fixture(scope="module")
def autoencoder():
    return SmallAutoencoder.load(ASSETS / "scenes" / FILE)


@torch.inference_mode()
def test_detector_after_the_autoencoder(held, autoencoder):
    scenes, images = held
    x = to_tensor(torch.from_numpy(images))
    y = autoencoder.decode(autoencoder.encode(x))
    assert -10 * torch.log10((x - y).square().mean() / 4) >= 35
    assert np.mean([agrees(f, s) for f, s in zip(detect(to_uint8(y).numpy()), scenes, strict=True)]) >= 0.97
    assert np.mean([agrees(f, s) for f, s in zip(detect(y), scenes, strict=True)]) >= 0.97


@torch.inference_mode()
def test_latents_are_normalised(held, autoencoder):
    z = autoencoder.encode(to_tensor(torch.from_numpy(held[1])))
    assert z.shape[1:] == (4, 8, 8)
    assert z.mean((0, 2, 3)).abs().max() < 0.15
    assert (z.std((0, 2, 3)) - 1).abs().max() < 0.15
