"""Training rows: where the image is, who sees whom, what is to be predicted."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from flashu.models.registry import ASSETS
from flashu.models.small_autoencoder import FILE, SmallAutoencoder
from flashu.scenes.tokenizer import build
from flashu.scenes.world import SCENES
from flashu.training.scenes.data import Batcher, Rows, allowed, build_pool

ROWS = Rows(SCENES)
PREFIX, HEADER, TOKENS = ROWS.prefix, ROWS.header, SCENES.tokens


@pytest.fixture(scope="module")
def batcher(tmp_path_factory):
    autoencoder = SmallAutoencoder.load(ASSETS / "scenes" / FILE)
    pool = build_pool(autoencoder, 100, tmp_path_factory.mktemp("pool") / "pool.pt")
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
