"""The quantized autoencoder of the embedded models."""

from __future__ import annotations

from pathlib import Path

import torch

from flashu.models.small_vq import CODES, FACTOR, SmallVQ, cells


def test_a_code_depends_on_its_cell_only() -> None:
    torch.manual_seed(0)
    model = SmallVQ()
    model.codebook.normal_()
    pixels = torch.rand(2, 3, 64, 48) * 2 - 1
    codes = model.encode(pixels)
    assert codes.shape == (2, 4, 3)
    assert 0 <= codes.min() <= codes.max() < CODES
    pixels[0, :, :FACTOR, FACTOR : 2 * FACTOR] *= -1
    changed = (model.encode(pixels) != codes).nonzero().tolist()
    assert changed in ([], [[0, 0, 1]])
    images = model.decode(codes)
    assert images.shape == pixels.shape
    assert images.abs().max() <= 1
    other = codes.clone()
    other[1, 2, 0] = (other[1, 2, 0] + 1) % CODES
    rows, columns = (model.decode(other) != images).any(1)[1].nonzero().T
    assert rows.min() >= 2 * FACTOR
    assert columns.max() < FACTOR


def test_the_nearest_code() -> None:
    model = SmallVQ()
    model.codebook.normal_()
    assert torch.equal(model.nearest(model.codebook[None] + 1e-3), torch.arange(CODES)[None])


def test_cells_are_in_reading_order() -> None:
    image = torch.zeros(1, 3, 32, 32)
    image[:, :, 16:, :16] = 1
    assert cells(image).mean(-1).tolist() == [[[0.0, 0.0], [1.0, 0.0]]]


def test_it_is_saved(tmp_path: Path) -> None:
    model = SmallVQ().bfloat16().float()
    model.codebook.normal_()
    model.save(tmp_path / "vq.safetensors")
    again = SmallVQ.load(tmp_path / "vq.safetensors")
    codes = torch.randint(CODES, (1, 4, 4))
    assert torch.allclose(again.decode(codes), model.decode(codes), atol=1e-6)
