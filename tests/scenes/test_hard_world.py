"""The larger world with free placement: its pictures, words and judges; the small world is what it was."""

from __future__ import annotations

import hashlib
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashu.scenes import benchmark, captions, questions, split, tokenizer
from flashu.scenes.detector import UNKNOWN, agrees, detect
from flashu.scenes.sampler import FAMILIES, held_scene, training_scene
from flashu.scenes.world import CELL, HARD, RELATIONS, SCENES, Object, Scene, holds, place, render, world_of

RNG = np.random.default_rng(0)
KINDS = st.lists(st.sampled_from(HARD.kinds), min_size=1, max_size=HARD.most)
SEEDS = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module")
def words():
    return tokenizer.build(HARD)


def held(n: int, seed: int = 0) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [held_scene(rng, HARD) for _ in range(n)]


# -- placement -----------------------------------------------------------------------------------------------------
@given(KINDS, SEEDS, st.booleans())
def test_objects_lie_apart_and_inside_the_frame(kinds, seed, aligned):
    scene = place(kinds[: 3 if aligned else None], np.random.default_rng(seed), aligned, HARD)
    centres = np.array([o.centre for o in scene.objects])
    reach = HARD.radius + 0.5  # an edge is a pixel wide
    assert (centres >= reach).all()
    assert (centres <= HARD.size - reach).all()
    for a, b in combinations(centres, 2):
        assert np.abs(a - b).max() >= 2 * reach + CELL / 2 - 1  # half a cell of background, less the jitter
    assert len({o.cell for o in scene.objects}) == len(scene.objects)  # no two answer to one name
    assert list(scene.objects) == sorted(scene.objects)
    if aligned:
        assert np.ptp(centres, axis=0).min() <= 1


@given(KINDS, SEEDS)
def test_objects_lie_on_squares_or_between_them_and_are_named_by_their_upper_left(kinds, seed):
    for o in place(kinds, np.random.default_rng(seed), world=HARD).objects:
        x, y = np.array(o.centre) - 4
        assert o.cell == "12345678"[int(y // 16)] + "abcdefgh"[int(x // 16)]
        assert np.abs(np.array(o.centre) / 8 - np.rint(np.array(o.centre) / 8)).max() <= 0.5 / 8 + 1e-9


def test_every_place_occurs():
    rng = np.random.default_rng(0)
    centres = [place([HARD.kinds[0]], rng, world=HARD).objects[0].centre for _ in range(4000)]
    assert {(round(x / 8), round(y / 8)) for x, y in centres} == set(product(range(1, 16), repeat=2))


@given(SEEDS)
def test_relations_hold_by_the_margin_and_are_denied_only_when_false(seed):
    rng = np.random.default_rng(seed)
    scene = training_scene("pair", rng, HARD)
    for a, relation, b in captions.relations(scene):
        along = 0 if relation in ("left of", "right of") else 1
        gap = (b.centre[along] - a.centre[along]) * (1 if relation in ("left of", "above") else -1)
        assert gap > 15
    asked = questions.ask("position", scene, "no", rng)
    if asked is not None:
        a, b = (next(o for o in scene.objects if o.cell == cell) for cell in asked.answer.split()[:2])
        relation = next(r for r in RELATIONS if r in asked.text)
        assert not holds(relation, a.centre, b.centre, 1)  # the jitter of two


# -- the detector --------------------------------------------------------------------------------------------------
def test_the_detector_reads_every_held_out_render():
    scenes = held(300)
    for found, scene in zip(detect(render(scenes), HARD), scenes, strict=True):
        assert agrees(found, scene)
        for seen, real in zip(found, scene.objects, strict=True):
            assert (seen.cell, seen.kind) == (real.cell, real.kind)
            assert np.abs(np.subtract(seen.centre, real.centre)).max() < 0.5


@pytest.mark.parametrize("kind", HARD.kinds, ids=" ".join)
def test_every_kind_is_told_apart_at_the_frame_and_anywhere(kind):
    corner = Object(0, 7, kind[1], kind[0], 0.4, -0.4)
    scenes = [Scene((corner,), HARD), place([kind], RNG, world=HARD)]
    assert all(agrees(f, s) for f, s in zip(detect(render(scenes), HARD), scenes, strict=True))


def test_nothing_and_a_smear_and_things_that_touch():
    blank = render([Scene((), HARD)])
    assert detect(blank, HARD) == [[]]
    smear = blank.copy()
    smear[0, 20:34, 50:64] = RNG.integers(0, 255, (14, 14, 3))
    assert [o.kind for o in detect(smear, HARD)[0]] == [(UNKNOWN, UNKNOWN)]
    touching = render([Scene((Object(3, 3, "square", "red"),), HARD)])
    touching[0, 50:62, 62:74] = (36, 84, 214)
    assert ("red", "square") not in [o.kind for o in detect(touching, HARD)[0]]
    with pytest.raises(ValueError, match="128x128"):
        detect(render([Scene(())]), HARD)


def test_worlds_are_known_by_the_size_of_their_pictures():
    assert (world_of(64, 64), world_of(128, 128), world_of(64, 128), world_of(432, 432)) == (SCENES, HARD, None, None)


# -- words ---------------------------------------------------------------------------------------------------------
def test_captions_and_questions_fit_and_are_known(words):
    rng = np.random.default_rng(1)
    for family in np.resize(FAMILIES, 600):
        scene = training_scene(family, rng, HARD)
        assert not split.is_test_scene(scene)
        tokens = words.encode(captions.training_caption(family, scene, rng)).tokens
        assert tokenizer.UNK not in tokens
        assert len(tokens) <= captions.longest(HARD)
    for kind in questions.QUESTION_KINDS:
        asked = benchmark.questions(kind, 42, 0, world=HARD)
        assert benchmark.blind_prior(asked) <= 1 / len(questions.verdicts(kind, HARD)) + 0.01
        for q in asked:
            assert split.is_test_scene(q.scene)
            row = words.encode(f"{q.text} <answer> {q.answer} <eos>").tokens
            assert tokenizer.UNK not in row
            assert len(row) <= questions.longest(HARD)
    describe = words.encode(" ".join(questions.describe(held(1)[0]))).tokens
    assert tokenizer.UNK not in describe


def test_the_new_words_have_their_synonyms(words):
    assert words.encode("5 diamonds and a doughnut").tokens == ["five", "diamond", "and", "a", "ring"]
    assert tokenizer.build().encode("5 diamonds").tokens == [tokenizer.UNK] * 2  # the small world has none


# -- the small world -----------------------------------------------------------------------------------------------
def digest(thing: object) -> str:
    return hashlib.sha256(thing if isinstance(thing, bytes) else repr(thing).encode()).hexdigest()[:16]


def test_the_small_world_is_bit_for_bit_what_it_was():
    """Digests taken before there was a second world."""
    rng = np.random.default_rng(5)
    scenes = [training_scene(f, rng) for f in np.resize(FAMILIES, 200)] + [held_scene(rng) for _ in range(200)]
    pixels = render(scenes)
    assert digest([[(o.row, o.column, o.shape, o.colour, o.dx, o.dy) for o in s.objects] for s in scenes]) == SMALL[0]
    assert digest(pixels.tobytes()) == SMALL[1]
    assert digest([[(d.shape, d.colour, d.row, d.column, d.centre) for d in f] for f in detect(pixels)]) == SMALL[2]
    rng = np.random.default_rng(6)
    told = [captions.training_caption(f, s, rng) for f, s in zip(np.resize(FAMILIES, 200), scenes, strict=False)]
    assert digest(told) == SMALL[3]
    sides = [(c, s) for c in benchmark.CATEGORIES for s in ("train", "test")]
    drawn = [(p.text, p.category, p.fact) for c, s in sides for p in benchmark.prompts(c, 150, 3, s)]
    assert digest(drawn) == SMALL[4]
    sides = [(k, s) for k in benchmark.QUESTION_KINDS for s in ("train", "test")]
    asked = [(q.text, q.answer, q.verdict) for k, s in sides for q in benchmark.questions(k, 40, 3, s)]
    assert digest(asked) == SMALL[5]
    assert digest(tokenizer.build().to_str()) == SMALL[6]


SMALL = (
    "a4b79f821a594b53", "cdc3422deb02816f", "ba981cdb2abf085d", "4416a954ab08ce52", "8ee0531235650c32",
    "890dc1baabd48db9", "0c95527445673560",
)  # fmt: skip
