"""Examples and rows of training: who sees whom, what is to be predicted, what is left out."""

from __future__ import annotations

import numpy as np
import pytest

from flashu.models.registry import ASSETS
from flashu.models.small_autoencoder import FILE, SmallAutoencoder
from flashu.models.training import IGNORED, Part, answered, pack, padding
from flashu.scenes.detector import agrees, detect
from flashu.scenes.edits import LONGEST
from flashu.scenes.split import is_test_scene
from flashu.scenes.tokenizer import build
from flashu.training.scenes.data import Batcher, build_pool


@pytest.fixture(scope="module")
def autoencoder():
    return SmallAutoencoder.load(ASSETS / "scenes" / FILE)


@pytest.fixture(scope="module")
def batcher(autoencoder, tmp_path_factory):
    pool = build_pool(autoencoder, 100, tmp_path_factory.mktemp("pool") / "pool.pt", edits=60)
    return Batcher(pool, build(instructions=True), 0, descriptions=0.3)


def test_parts_say_who_sees_whom():
    row = [
        padding(2),
        Part([5], [0]),
        Part([0, 0], [1, 1], block=True),
        Part([6, 7], [2, 3], group=1),
        Part([8], [2], group=2),
    ]
    packed = pack([row])
    seen = [[int(k) for k in np.flatnonzero(line)] for line in packed.mask[0, 0].numpy()]
    assert seen == [[0], [1], [2], [2, 3, 4], [2, 3, 4], [2, 3, 4, 5], [2, 3, 4, 5, 6], [2, 3, 4, 7]]
    assert packed.ids.tolist() == [[0, 0, 5, 0, 0, 6, 7, 8]]
    assert packed.position.tolist() == [[0, 0, 0, 1, 1, 2, 3, 2]]


def test_an_answer_is_predicted_one_token_ahead():
    part = answered([1, 2, 3], [4, 5], start=7, group=1)
    assert list(part.ids) == [1, 2, 3, 4, 5]
    assert list(part.position) == [7, 8, 9, 10, 11]
    assert list(part.targets) == [IGNORED, IGNORED, 4, 5, IGNORED]
    assert all(b == t for t, b in zip(part.targets, part.ids[1:], strict=False) if t != IGNORED)


def test_unequal_rows_are_refused():
    with pytest.raises(ValueError, match="pad"):
        pack([[padding(2)], [padding(3)]])


def test_edits_in_the_pool_are_of_training_scenes(batcher, autoencoder):
    pool = batcher.pool
    assert len(pool.scenes) == len(pool.pictures) == len(pool.cells) == 160
    for source, text, target in pool.edits:
        assert not is_test_scene(pool.scenes[source])
        assert not is_test_scene(pool.scenes[target])
        assert pool.scenes[source] != pool.scenes[target]
        assert text
    decoded = autoencoder.decode(pool.pictures[[t for _, _, t in pool.edits]])
    assert all(agrees(f, pool.scenes[t]) for f, (_, _, t) in zip(detect(decoded), pool.edits, strict=True))
    pixels = pool.pixels([3, 150])
    assert pixels.shape == (2, 3, 64, 64)
    assert agrees(detect(pixels)[1], pool.scenes[150])


def test_examples(batcher):
    words, drawings = {i: w for w, i in batcher.tokenizer.get_vocab().items()}, batcher.drawings(300)
    assert 10 < sum(not d.text for d in drawings) < 60  # for guidance
    assert all(words[i] != "<unk>" for e in batcher.editings(100) for i in e.text)
    editings = batcher.editings(300)
    assert max(len(e.text) for e in editings) <= LONGEST
    assert {"text"} < set().union(*(e.without for e in editings)) == {"text", "latents", "pixels"}
    asked = batcher.askings(200)
    long = [a for a in asked if len(a.asks) == 1]
    assert 30 < len(long) < 100
    assert all(48 <= len(a.asks[0][1]) <= 52 for a in long)
    assert all(len(a.asks) >= 6 for a in asked if a not in long)
