"""The scorers of the scenes worlds against hand-made cases: nothing, perfect pictures, swapped colours."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from flashu.evaluation import scenes_questions as suites
from flashu.evaluation.scenes_drawing import (
    GENEVAL_COLUMNS,
    DensePrompt,
    DPGSuite,
    GenEvalSuite,
    Relation,
    dense_prompt,
    dense_prompts,
    facts,
)
from flashu.evaluation.scenes_questions import QuestionSuite, SuiteItem, read
from flashu.scenes.benchmark import MARGIN, Prompt
from flashu.scenes.captions import multi
from flashu.scenes.detector import Detected, detect
from flashu.scenes.sampler import held_scene
from flashu.scenes.world import HARD, SCENES, Kind, Object, Scene, World, holds, place, render

RNG = np.random.default_rng(0)
WORLDS = pytest.mark.parametrize("world", [SCENES, HARD], ids=["scenes", "scenes-hard"])


def swapped(scene: Scene) -> Scene:
    """The same scene with the first two objects' colours exchanged."""
    a, b, *rest = scene.objects
    return Scene((replace(a, colour=b.colour), replace(b, colour=a.colour), *rest), scene.world)


def seen(*scenes: Scene) -> list[list[Detected]]:
    return detect(render(scenes), scenes[0].world)


def picture(prompt: Prompt, world: World) -> Scene:
    """A scene that shows what a GenEval prompt asks for."""
    fact = prompt.fact
    kinds: list[Kind] = {
        "single": lambda: [("red", fact[0])],
        "colours": lambda: [fact],
        "counting": lambda: [fact[0]] * fact[1],
        "position": lambda: [fact[0], fact[2]],
    }.get(prompt.category, lambda: list(fact))()
    while True:
        scene = place(kinds, RNG, world=world)
        at = {o.kind: o.centre for o in scene.objects}
        # A pixel more than needed, since the detector finds centres to half a pixel.
        if prompt.category != "position" or holds(fact[1], at[fact[0]], at[fact[2]], MARGIN + 1):
            return scene


@WORLDS
def test_geneval_of_perfect_and_of_blank_pictures(world: World) -> None:
    suite = GenEvalSuite.make(prompts=6, images=1, world=world)
    perfect = suite.score(seen(*(picture(p, world) for p in suite.prompts)))
    assert list(perfect.scores()) == [*GENEVAL_COLUMNS.values(), "Overall"]
    assert {s.value for s in perfect.scores().values()} == {1.0}
    blank = suite.score(seen(*[Scene((), world)] * len(suite.texts)))
    assert {s.value for s in blank.scores().values()} == {0.0}
    assert perfect.against(blank).significant


@WORLDS
def test_a_swapped_colour_fails_attribution_alone(world: World) -> None:
    suite = GenEvalSuite.make(prompts=8, images=1, world=world)
    pictures = [picture(p, world) for p in suite.prompts]
    pictures = [
        swapped(scene) if prompt.category == "attribution" else scene
        for prompt, scene in zip(suite.prompts, pictures, strict=True)
    ]
    scores = suite.score(seen(*pictures)).scores()
    assert {name for name, score in scores.items() if score.value < 1} == {"Color Attri.", "Overall"}
    assert scores["Color Attri."].value == 0


def test_every_image_has_its_own_seed_and_its_prompts_text() -> None:
    suite = GenEvalSuite.make(prompts=2, images=3, seed=7)
    assert suite.seeds == list(range(7, 7 + 6 * 2 * 3))
    assert suite.texts[:4] == [suite.prompts[0].text] * 3 + [suite.prompts[1].text]
    assert DPGSuite.make(prompts=2, images=2, seed=7).seeds == [100_007, 100_008, 100_009, 100_010]


def dense(relation: Relation | None = (("red", "circle"), "left of", ("blue", "square"))) -> DensePrompt:
    groups: tuple[tuple[Kind, int], ...] = ((("red", "circle"), 1), (("blue", "square"), 1), (("green", "cross"), 2))
    return DensePrompt("text", groups, relation)


SHOWN = Scene(
    (
        Object(0, 0, "circle", "red"),
        Object(0, 2, "square", "blue"),
        Object(1, 1, "cross", "green"),
        Object(3, 3, "cross", "green"),
    )
)


def shares(prompt: DensePrompt, scene: Scene) -> dict[str, float]:
    table = DPGSuite((prompt,), 1, 0).score(seen(scene))
    return {column: score.value for column, score in table.scores().items()}


def test_dpg_scores_fact_by_fact() -> None:
    whole = ("Global", "Entity", "Attribute", "Relation", "Facts", "Overall")
    assert shares(dense(), SHOWN) == dict.fromkeys(whole, 1.0)
    assert shares(dense(), Scene(())) == dict.fromkeys(whole, 0.0)
    wrong = shares(dense(), swapped(SHOWN))
    assert wrong["Attribute"] == pytest.approx(1 / 3)
    assert [wrong[c] for c in ("Global", "Entity", "Relation")] == [1, 1, 1]
    assert wrong["Overall"] == pytest.approx(6 / 8)
    extra = shares(dense(), Scene((*SHOWN.objects, Object(2, 0, "triangle", "red"))))
    assert [extra[c] for c in ("Global", "Entity", "Attribute", "Relation")] == [0, 1, 1, 1]
    missing = shares(dense(), Scene(SHOWN.objects[:3]))
    assert [missing[c] for c in ("Global", "Relation")] == [0, 1]
    assert missing["Entity"] == missing["Attribute"] == pytest.approx(2 / 3)
    turned = DensePrompt("text", dense().groups, (("red", "circle"), "right of", ("blue", "square")))
    assert shares(turned, SHOWN)["Relation"] == 0


def test_dense_prompts_use_the_words_of_training_captions() -> None:
    made = dense_prompts(60, seed=3)
    assert len({p.text for p in made}) == 60
    assert {p.facts for p in made} <= {3, 4, 5, 6}
    assert 0.5 < sum(p.relation is not None for p in made) / 60 < 0.8
    rng = np.random.default_rng(1)
    for _ in range(6):
        scene = held_scene(rng)
        wordings = {multi(scene, np.random.default_rng(k)) for k in range(1500)}
        text = dense_prompt(scene, rng).text
        assert text in wordings


@WORLDS
def test_a_dense_prompt_holds_of_its_own_scene(world: World) -> None:
    rng = np.random.default_rng(3)
    scenes = [scene for scene in (held_scene(rng, world) for _ in range(60)) if len(scene.objects) > 2]
    assert scenes
    for scene, objects in zip(scenes, seen(*scenes), strict=True):
        assert all(ok for _, ok in facts(dense_prompt(scene, RNG), objects))


@WORLDS
def test_questions_of_the_right_answers_of_silence_and_of_one_word(world: World) -> None:
    suite = QuestionSuite.make(12, seed=1, world=world)
    assert all(item.scene.world is world for item in suite.items)
    truths = [f"so {item.truth}" for item in (*suite.items, *suite.blind)]
    assert {s.value for s in suite.score(truths).scores().values()} == {1.0}
    silent = suite.score([""] * len(suite.questions)).scores()
    assert {s.value for s in silent.values()} == {0.0}
    yes = suite.score(["so yes"] * len(suite.questions)).scores()
    assert yes[suites.MME].value == 0.5
    assert yes[suites.MME_PLUS].value == yes[suites.MMB].value == 0
    with pytest.raises(ValueError, match="answers to"):
        suite.score(["yes"])


def test_the_questions_about_an_empty_scene_may_be_left_out() -> None:
    suite = QuestionSuite.make(6, seed=1)
    assert all(scene is None for _, scene in suite.questions[len(suite.items) :])
    table = suite.score([f"so {item.truth}" for item in suite.items])
    assert suites.BLIND not in table.columns
    assert table.overall.value == 1


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("1a 2b so two", "two"),
        ("so so no .", "no"),
        ("Yes, there is.", "yes"),
        ("It is a blue one.", "blue"),
        ("", None),
    ],
)
def test_verdicts_are_read(text: str, word: str | None) -> None:
    assert read(text) == word


def test_question_items_are_true_and_balanced() -> None:
    suite = QuestionSuite.make(24, seed=2)
    groups: dict[str, list[SuiteItem]] = {}
    for item in suite.items:
        groups.setdefault(item.group, []).append(item)
    for name, items in groups.items():
        if items[0].suite == suites.MMB:
            assert sorted(i.truth for i in items) == ["no", "no", "no", "yes"]
            for item in items:
                words = item.text.rstrip("?").split()
                colour = words[-2] if words[-2] in SCENES.colours else None
                assert bool(item.scene.matching(words[-1], colour)) == (item.truth == "yes"), item
        elif items[0].suite == suites.VISION:
            assert len({i.text for i in items}) == 1, name
            assert len({i.truth for i in items}) == 2
        elif items[0].suite == suites.MME:
            assert [i.truth for i in items] == ["yes", "no"]
            assert len({i.scene for i in items}) == 1
    assert {i.truth for i in suite.items if i.suite == suites.COUNT} == {"zero", "one", "two", "three", "four"}


def digest(thing: object) -> str:
    return hashlib.sha256(repr(thing).encode()).hexdigest()[:16]


def test_the_small_worlds_suites_are_what_they_were() -> None:
    """Digests taken before there was a second world."""
    items = QuestionSuite.make(60, 4).items
    assert digest([(i.text, i.truth, i.suite, i.group) for i in items]) == "e6b1e8c5d9c32cb4"
    assert digest([(p.text, p.groups, p.relation) for p in dense_prompts(60, 4)]) == "cd2f1a6bddac1edf"
