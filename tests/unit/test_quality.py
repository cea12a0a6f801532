"""The scorers against hand-made cases: nothing, perfect pictures, swapped colours; the statistics, known values."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flashu.evaluation import fidelity, scores
from flashu.evaluation import scenes_dpg as dpg
from flashu.evaluation import scenes_questions as und
from flashu.evaluation.scenes_dpg import DPG, Dense
from flashu.evaluation.scenes_geneval import COLUMNS, GenEval
from flashu.evaluation.scenes_questions import Und
from flashu.evaluation.score_ledger import Ledger, key_of
from flashu.evaluation.scores import Mark, Sheet
from flashu.evaluation.statistics import wilson
from flashu.scenes.benchmark import MARGIN, Prompt
from flashu.scenes.captions import multi
from flashu.scenes.detector import detect
from flashu.scenes.sampler import held_scene
from flashu.scenes.world import SCENES, Kind, Object, Scene, holds, place, render

RNG = np.random.default_rng(0)


def swapped(scene: Scene) -> Scene:
    """The same scene with the first two objects' colours exchanged."""
    a, b, *rest = scene.objects
    one = Object(a.row, a.column, a.shape, b.colour, a.dx, a.dy)
    other = Object(b.row, b.column, b.shape, a.colour, b.dx, b.dy)
    return Scene((one, other, *rest))


def seen(*scenes: Scene) -> list:
    return detect(render(scenes))


def picture(prompt: Prompt) -> Scene:
    """A scene that shows what a GenEval prompt asks for."""
    fact = prompt.fact
    if prompt.category == "single":
        return place([("red", fact[0])], RNG)
    if prompt.category == "colours":
        return place([fact], RNG)
    if prompt.category == "counting":
        return place([fact[0]] * fact[1], RNG)
    if prompt.category != "position":
        return place(list(fact), RNG)
    while True:
        scene = place([fact[0], fact[2]], RNG)
        at = {o.kind: o.centre for o in scene.objects}
        if holds(fact[1], at[fact[0]], at[fact[2]], MARGIN):
            return scene


def test_geneval_of_perfect_and_of_blank_pictures() -> None:
    suite = GenEval.make(prompts=6, images=1)
    perfect = suite.sheet(detect(render([picture(p) for p in suite.prompts])))
    assert list(perfect.scores()) == [*COLUMNS.values(), "Overall"]
    assert {s.value for s in perfect.scores().values()} == {1.0}
    blank = suite.sheet(detect(render([Scene(())] * len(suite.texts))))
    assert {s.value for s in blank.scores().values()} == {0.0}
    assert perfect.against(blank).significant


def test_a_swapped_colour_fails_attribution_alone() -> None:
    circle, square = ("red", "circle"), ("blue", "square")
    scene = Scene((Object(0, 0, "circle", "red"), Object(0, 2, "square", "blue")))
    prompts = (Prompt("", "single", ("circle",)), Prompt("", "attribution", (circle, square)))
    suite = GenEval(prompts, 1, 0)
    assert [s.value for s in suite.sheet(seen(scene) * 2).scores().values()] == [1, 1, 1]
    assert [s.value for s in suite.sheet(seen(swapped(scene)) * 2).scores().values()] == [1, 0, 0.5]


def dense(relation: dpg.Relation | None = (("red", "circle"), "left of", ("blue", "square"))) -> Dense:
    groups: tuple[tuple[Kind, int], ...] = ((("red", "circle"), 1), (("blue", "square"), 1), (("green", "cross"), 2))
    return Dense("text", groups, relation)


BOARD = Scene(
    (
        Object(0, 0, "circle", "red"),
        Object(0, 2, "square", "blue"),
        Object(1, 1, "cross", "green"),
        Object(3, 3, "cross", "green"),
    )
)


def shares(prompt: Dense, scene: Scene) -> dict[str, float]:
    sheet = DPG((prompt,), 1, 0).sheet(seen(scene))
    return {column: score.value for column, score in sheet.scores().items()}


def test_dpg_scores_fact_by_fact() -> None:
    whole = ("Global", "Entity", "Attribute", "Relation", "Facts", "Overall")
    assert shares(dense(), BOARD) == dict.fromkeys(whole, 1.0)
    assert shares(dense(), Scene(())) == dict.fromkeys(whole, 0.0)
    wrong = shares(dense(), swapped(BOARD))
    assert wrong["Attribute"] == pytest.approx(1 / 3)
    assert [wrong[c] for c in ("Global", "Entity", "Relation")] == [1, 1, 1]
    assert wrong["Overall"] == pytest.approx(6 / 8)
    extra = shares(dense(), Scene((*BOARD.objects, Object(2, 0, "triangle", "red"))))
    assert [extra[c] for c in ("Global", "Entity", "Attribute", "Relation")] == [0, 1, 1, 1]
    missing = shares(dense(), Scene(BOARD.objects[:3]))
    assert [missing[c] for c in ("Global", "Relation")] == [0, 1]
    assert missing["Entity"] == missing["Attribute"] == pytest.approx(2 / 3)
    turned = Dense("text", dense().groups, (("red", "circle"), "right of", ("blue", "square")))
    assert shares(turned, BOARD)["Relation"] == 0


def test_dpg_prompts_use_the_words_of_training_captions() -> None:
    made = dpg.prompts(60, seed=3)
    assert len({p.text for p in made}) == 60
    assert {p.facts for p in made} <= {3, 4, 5, 6}
    assert 0.5 < sum(p.relation is not None for p in made) / 60 < 0.8
    rng = np.random.default_rng(1)
    for _ in range(6):
        scene = held_scene(rng)
        wordings = {multi(scene, np.random.default_rng(k)) for k in range(1500)}
        text = dpg.dense(scene, rng).text
        assert text in wordings


def answers_of(suite: Und) -> list[str]:
    return [f"so {a.truth}" for a in suite.asked]


def test_und_of_the_right_answers_of_silence_and_of_one_word() -> None:
    suite = Und.make(12, seed=1)
    blind = [f"so {a.truth}" for a in suite.blind]
    right = suite.sheet(answers_of(suite) + blind).scores()
    assert {s.value for s in right.values()} == {1.0}
    silent = suite.sheet([""] * len(suite.shown)).scores()
    assert {s.value for s in silent.values()} == {0.0}
    yes = suite.sheet(["so yes"] * len(suite.shown)).scores()
    assert yes[und.MME].value == 0.5
    assert yes[und.MME_PLUS].value == yes[und.MMB].value == 0


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
    assert und.read(text) == word


def test_und_items_are_true_and_balanced() -> None:
    suite = Und.make(24, seed=2)
    groups: dict[str, list[und.Asked]] = {}
    for item in suite.asked:
        groups.setdefault(item.group, []).append(item)
    for name, items in groups.items():
        if items[0].suite == und.MMB:
            assert sorted(i.truth for i in items) == ["no", "no", "no", "yes"]
            for item in items:
                words = item.shown.text.rstrip("?").split()
                assert item.shown.scene is not None
                present = bool(item.shown.scene.matching(words[-1], words[-2] if words[-2] in SCENES.colours else None))
                assert present == (item.truth == "yes"), item
        elif items[0].suite == und.VISION:
            assert len({i.shown.text for i in items}) == 1, name
            assert len({i.truth for i in items}) == 2
        elif items[0].suite == und.MME:
            assert [i.truth for i in items] == ["yes", "no"]
            assert len({i.shown.scene for i in items}) == 1
    assert {i.truth for i in suite.asked if i.suite == und.COUNT} == {"zero", "one", "two", "three", "four"}
    with pytest.raises(ValueError, match="answers to"):
        suite.sheet(["yes"])


def test_scores_of_independent_items_are_wilsons() -> None:
    marks = [Mark(k, float(k < 8)) for k in range(10)]
    score, rate = scores.combined([marks]), wilson(8, 10)
    assert score.value == rate.value
    # the variance between ten clusters of one is p(1-p)/9
    assert (score.low, score.high) == pytest.approx(scores.wilson_bounds(0.8, 9))
    assert scores.wilson_bounds(0.8, 10) == pytest.approx((rate.low, rate.high))


def test_images_that_err_together_count_as_one() -> None:
    together = [Mark(k // 4, float(k // 4 < 8)) for k in range(40)]
    apart = [Mark(k, float(k < 32)) for k in range(40)]
    wide, narrow = scores.combined([together]), scores.combined([apart])
    assert wide.value == narrow.value == 0.8
    assert (wide.low, wide.high) == pytest.approx(scores.wilson_bounds(0.8, 9))
    assert wide.high - wide.low > narrow.high - narrow.low


def test_differences_are_paired() -> None:
    base = Sheet({"a": [Mark(k, 1.0) for k in range(60)]}, ("a",))
    worse = Sheet({"a": [Mark(k, float(k >= 12)) for k in range(60)]}, ("a",))
    found = worse.against(base)
    assert (found.lost, found.won) == (12, 0)
    assert found.value == pytest.approx(-0.2)
    assert found.p == pytest.approx(2 / 2**12)
    assert found.significant
    same = base.against(base)
    assert (same.low, same.high) == (-3 / 60, 3 / 60)  # the rule of three
    assert not same.significant
    with pytest.raises(ValueError, match="same items"):
        Sheet({"a": [Mark(0, 1.0)]}, ("a",)).against(base)


def test_pooled_differences_average_an_item_first() -> None:
    def sheet(*values: float) -> Sheet:
        return Sheet({"a": [Mark(k, v) for k, v in enumerate(values)]}, ("a",))

    assert [m.value for m in scores.averaged([sheet(1, 0), sheet(0, 0)]).marks["a"]] == [0.5, 0]
    found = scores.pooled([(sheet(0, 0, 1), sheet(1, 0, 1)), (sheet(1, 0, 1), sheet(1, 0, 1))])
    assert (found.lost, found.won) == (0, 1)
    assert found.value == pytest.approx(0.5 / 3)


def test_fidelity_of_the_same_and_of_another_image() -> None:
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    z = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    same = fidelity.fidelity(x, x, z, z)
    assert (same.psnr, same.latent) == (None, 0)
    assert same.ssim == pytest.approx(1)
    off = fidelity.fidelity((x * 0.8 + 0.1), x, z * 1.1, z)
    assert off.psnr == pytest.approx(float(-10 * torch.log10((0.2 * x - 0.1).square().mean())), abs=1e-4)
    assert 0.5 < off.ssim < 1
    assert off.latent == pytest.approx(0.1, abs=1e-6)


def test_the_ledger_outlives_an_interruption(tmp_path) -> None:
    path = tmp_path / "work.jsonl"
    first = Ledger(path)
    first.record(key_of("a", 1), [1, 2])
    with path.open("a") as file:
        file.write('{"key": "torn", "val')
    again = Ledger(path)
    assert again.recall(key_of("a", 1)) == [1, 2]
    again.record("b", "x")
    third = Ledger(path)
    assert third.values == {key_of("a", 1): [1, 2], "b": "x"}
    assert key_of("a", 1) != key_of("a", 2)
