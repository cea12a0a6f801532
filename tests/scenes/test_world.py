"""Scenes: rendering, the split, captions, questions and the tokenizer."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from flashu.scenes import benchmark, captions, questions, split, tokenizer
from flashu.scenes.sampler import FAMILIES, held_scene, training_scene
from flashu.scenes.world import NUMBERS, SCENES, Object, Scene, holds, render


def scenes(n: int, seed: int = 0) -> list[tuple[str, Scene]]:
    rng = np.random.default_rng(seed)
    return [(f, training_scene(f, rng)) for f in np.resize(FAMILIES, n)]


@pytest.fixture(scope="module")
def words():
    return tokenizer.build()


def test_rendering_is_deterministic_by_seed():
    first, second, other = (render(s for _, s in scenes(12, seed)) for seed in (3, 3, 4))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)
    assert first.shape == (12, 64, 64, 3)
    assert first.dtype == np.uint8


@pytest.mark.parametrize("shape", SCENES.shapes)
def test_an_object_stays_in_its_cell_and_is_antialiased(shape):
    empty = render([Scene(())])[0]
    image = render([Scene((Object(1, 2, shape, "red", 0.8, -0.8),))])[0]
    changed = (image != empty).any(-1)
    assert changed[16:32, 32:48].sum() == changed.sum() > 40
    assert len(np.unique(image[changed], axis=0)) >= 3


def test_scenes_have_one_object_to_a_cell():
    for _, scene in scenes(200):
        assert len({o.cell for o in scene.objects}) == len(scene.objects) <= 4
        assert list(scene.objects) == sorted(scene.objects)


def test_training_scenes_hold_nothing_held_out():
    for _, scene in scenes(800, seed=1):
        kinds = [o.kind for o in scene.objects]
        assert not any(frozenset(p) in split.held_pairs() for p in combinations(kinds, 2))
        assert not any((k, kinds.count(k)) in split.held_counts() for k in kinds)


def test_test_scenes_hold_a_held_out_pair():
    rng = np.random.default_rng(2)
    assert all(split.has_held_pair(held_scene(rng)) for _ in range(100))


@pytest.mark.parametrize("category", benchmark.CATEGORIES)
def test_test_prompts_share_no_combination_with_training(category):
    train = {(p.fact, p.text) for p in benchmark.prompts(category, 3000, 0, split="train")}
    test = {(p.fact, p.text) for p in benchmark.prompts(category, 3000, 0)}
    assert not train & test
    if category in ("single", "colours"):
        return  # four and twenty facts: what is held out are wordings
    assert not {f for f, _ in train} & {f for f, _ in test}


@pytest.mark.parametrize("category", ["single", "colours"])
def test_training_captions_avoid_held_out_wordings(category):
    rng = np.random.default_rng(0)
    held = {p.text for p in benchmark.prompts(category, 500, 0)}
    made = {captions.caption(category, training_scene("single", rng), rng) for _ in range(1500)}
    assert not made & held


def test_prompts_are_deterministic_and_need_only_known_words(words):
    for category in benchmark.CATEGORIES:
        made = benchmark.prompts(category, 60, 7)
        assert made == benchmark.prompts(category, 60, 7)
        assert made != benchmark.prompts(category, 60, 8)
        for prompt in made:
            tokens = words.encode(prompt.text).tokens
            assert tokenizer.UNK not in tokens
            assert len(tokens) <= captions.longest(SCENES)


def test_training_captions_fit(words):
    rng = np.random.default_rng(0)
    for family, scene in scenes(1000):
        tokens = words.encode(captions.training_caption(family, scene, rng)).tokens
        assert tokenizer.UNK not in tokens
        assert len(tokens) <= captions.longest(SCENES)


@pytest.mark.parametrize("category", benchmark.CATEGORIES)
def test_judge_accepts_the_true_scene_and_no_empty_one(category):
    rng = np.random.default_rng(0)
    accepted = 0
    for prompt in benchmark.prompts(category, 200, 0, split="train"):
        for family, scene in scenes(60, seed=int(rng.integers(1000))):
            if prompt.fact in captions.facts(scene).get(category, []):
                assert benchmark.judge(prompt, scene.objects), (family, prompt, scene)
                accepted += 1
        assert not benchmark.judge(prompt, [])
    assert accepted > 5


def test_judge_is_exact():
    red, blue = Object(0, 0, "circle", "red"), Object(0, 3, "square", "blue")
    count = benchmark.Prompt("one", "counting", (("red", "circle"), 2))
    twins = [red, Object(1, 1, "circle", "red")]
    assert benchmark.judge(count, twins)
    assert not benchmark.judge(count, [*twins, blue])
    swapped = benchmark.Prompt("", "attribution", (("blue", "circle"), ("red", "square")))
    assert not benchmark.judge(swapped, [red, blue])
    for relation, truth in (("left of", True), ("right of", False), ("above", False), ("below", False)):
        assert benchmark.judge(benchmark.Prompt("", "position", (red.kind, relation, blue.kind)), [red, blue]) is truth


def _grounded_truth(question: questions.Question) -> bool:
    """Re-reads the evidence in the answer: every cell named must hold an object the question names."""
    named = {o.cell: o for o in question.scene.objects}
    cells = [w for w in question.answer.split() if len(w) == 2 and w[0].isdigit()]
    text = question.text.lower()
    return all(c in named and (named[c].shape in text or named[c].colour in text or "object" in text) for c in cells)


@pytest.mark.parametrize("kind", benchmark.QUESTION_KINDS)
def test_questions_are_balanced_grounded_and_readable(kind, words):
    asked = benchmark.questions(kind, 60, 0)
    assert asked == benchmark.questions(kind, 60, 0)
    assert benchmark.blind_prior(asked) <= 1 / len(questions.verdicts(kind, SCENES)) + 0.01
    for q in asked:
        assert split.has_held_pair(q.scene)
        assert questions.verdict(q.answer) == q.verdict
        assert _grounded_truth(q), q
        row = words.encode(f"{q.text} <answer> {q.answer} <eos>").tokens
        assert tokenizer.UNK not in row
        assert len(row) <= questions.longest(SCENES)


def test_counts_and_positions_are_true():
    for q in benchmark.questions("count", 50, 1):
        cells = q.answer.split(" so ")[0].split()
        assert NUMBERS.index(q.verdict) == (0 if cells == ["none"] else len(cells))
    for q in benchmark.questions("position", 50, 1):
        at = {o.cell: o.centre for o in q.scene.objects}
        a, b = q.answer.split()[:2]
        relation = next(r for r in ("left of", "right of", "above", "below") if r in q.text)
        assert holds(relation, at[a], at[b], 8) is (q.verdict == "yes")


@pytest.mark.parametrize(
    ("typed", "plain"),
    [
        ("A red circle to the left of a blue square", "a red circle left of a blue square"),
        ("How many circles are there?", "how many circle are there ?"),
        ("3 violet boxes", "three purple square"),
        ("a photo of crosses under an object", "a picture of cross below a object"),
        ("Describe this image", "describe the picture ."),
        ("What color is the disc at 2c", "what colour is the circle <unk> 2 ##c"),
    ],
)
def test_synonyms_plurals_and_case(words, typed, plain):
    assert words.encode(typed).tokens == plain.split()


def test_answers_survive_the_tokenizer(words):
    answer = "1a 2b versus none so no"
    assert words.decode(words.encode(answer).ids) == answer
    assert questions.verdict("1a 2b so two") == "two"
    assert questions.verdict("nothing here") is None
