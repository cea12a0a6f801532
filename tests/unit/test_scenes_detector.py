"""The detector on renders and through the autoencoder, the shipped files, and the trainer's layouts."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from flashu.scenes.autoencoder import Autoencoder, to_tensor, to_uint8
from flashu.scenes.detector import UNKNOWN, agrees, detect
from flashu.scenes.sampler import FAMILIES, held_scene, training_scene
from flashu.scenes.world import SCENES, render
from flashu.training.scenes.data import Batcher, Pool, Rows, allowed, build_pool
from flashu.training.scenes.export import ASSETS

ROWS = Rows(SCENES)
PREFIX, HEADER, TOKENS = ROWS.prefix, ROWS.header, SCENES.tokens


@pytest.fixture(scope="module")
def held():
    rng = np.random.default_rng(123_456)
    made = [held_scene(rng) for _ in range(300)] + [training_scene(f, rng) for f in np.resize(FAMILIES, 100)]
    return made, render(made)


@pytest.fixture(scope="module")
def autoencoder():
    return Autoencoder.load(ASSETS / "scenes" / "autoencoder.safetensors")


def test_detector_on_held_out_renders(held):
    scenes, images = held
    assert np.mean([agrees(f, s) for f, s in zip(detect(images), scenes, strict=True)]) >= 0.99


@torch.inference_mode()
def test_detector_after_the_autoencoder(held, autoencoder):
    scenes, images = held
    x = to_tensor(torch.from_numpy(images))
    y = autoencoder.decode(autoencoder.encode(x))
    assert -10 * torch.log10((x - y).square().mean() / 4) >= 35
    assert np.mean([agrees(f, s) for f, s in zip(detect(to_uint8(y).numpy()), scenes, strict=True)]) >= 0.97
    assert np.mean([agrees(f, s) for f, s in zip(detect(y), scenes, strict=True)]) >= 0.97


def test_detector_takes_every_kind_of_image(held):
    _, images = held
    as_pil = detect([Image.fromarray(images[0])])
    assert as_pil == detect(images[:1]) == detect(to_tensor(torch.from_numpy(images[:1])))
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


@torch.inference_mode()
def test_latents_are_normalised(held, autoencoder):
    z = autoencoder.encode(to_tensor(torch.from_numpy(held[1])))
    assert z.shape[1:] == (4, 8, 8)
    assert z.mean((0, 2, 3)).abs().max() < 0.15
    assert (z.std((0, 2, 3)) - 1).abs().max() < 0.15


@pytest.fixture(scope="module")
def batcher(autoencoder, tmp_path_factory):
    from flashu.scenes.tokenizer import build

    pool: Pool = build_pool(autoencoder, 100, tmp_path_factory.mktemp("pool") / "pool.pt")
    return Batcher(pool, build(), 0)


def test_generation_rows_end_with_the_image(batcher):
    batch = batcher.generation(8)
    assert batch.ids.shape == (8, PREFIX + 1 + TOKENS)
    assert (batch.ids[:, PREFIX - 1] == batcher.id["<boi>"]).all()
    for ids, pos, mask in zip(batch.ids, batch.pos, batch.mask[:, 0], strict=True):
        start = ids.tolist().index(batcher.id["<bos>"])
        assert pos[start:].tolist() == list(range(len(ids) - start))
        assert not mask[start:, :start].any()  # padding is invisible
        assert torch.equal(mask[start:, start:], allowed(len(ids) - start, slice(PREFIX - start, len(ids) - start)))


def test_packed_questions_see_the_image_and_themselves(batcher):
    batch = batcher.understanding(4)
    for ids, pos, mask, targets in zip(batch.ids, batch.pos, batch.mask[:, 0], batch.targets, strict=True):
        starts = [HEADER] + [i + 1 for i, v in enumerate(ids.tolist()) if v == batcher.id["<eos>"]]
        for start, end in pairwise(starts):
            assert pos[start:end].tolist() == list(range(HEADER, HEADER + end - start))
            assert mask[start:end, :HEADER].all()
            assert not mask[start:end, HEADER:start].any()
            marker = start + ids[start:end].tolist().index(batcher.id["<answer>"])
            assert torch.equal(targets[marker : end - 1], ids[marker + 1 : end])
            assert (targets[start:marker] == -100).all()
            assert targets[end - 1] == -100
