"""Edits of scenes: every instruction is said in known words, its target is what it says, and the judge tells the change
that was asked for from everything else."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from flashu.scenes import edits, questions
from flashu.scenes.detector import detect
from flashu.scenes.edits import EDIT_KINDS, HARD_KINDS, TEMPLATES, Edit, Verdict, judge, training_edit
from flashu.scenes.sampler import FAMILIES, training_scene
from flashu.scenes.split import is_test_scene
from flashu.scenes.tokenizer import UNK, build
from flashu.scenes.world import HARD, Object, Scene, render

RED, BLUE = Object(0, 1, "circle", "red"), Object(2, 3, "square", "blue")


@pytest.mark.parametrize("kind", [*EDIT_KINDS, *HARD_KINDS])
def test_suites(kind):
    made = edits.edits(kind, 60, seed=0)
    assert made == edits.edits(kind, 60, seed=0)
    assert {e.kind for e in made} == {kind}
    assert all(is_test_scene(e.source) for e in made)
    encoded = build(instructions=True).encode_batch([e.text for e in made])
    assert not any(UNK in e.tokens for e in encoded)
    assert max(len(e.ids) for e in encoded) <= edits.LONGEST
    for scenes, verdict in (([e.target for e in made], (True, True)), ([e.source for e in made], (False, True))):
        found = [judge(e, seen) for e, seen in zip(made, detect(render(scenes)), strict=True)]
        assert set(found) == {Verdict(*verdict)}  # copying the source keeps all and does nothing


def test_the_judge_tells_what_went_wrong():
    edit = Edit(
        Scene((RED, BLUE)), "make the red circle green", Scene((replace(RED, colour="green"), BLUE)), "recolour"
    )
    green = replace(RED, colour="green")
    assert judge(edit, [green, BLUE]) == Verdict(asked=True, kept=True)
    assert judge(edit, [green]) == Verdict(asked=True, kept=False)
    assert judge(edit, [green, BLUE, Object(3, 0, "cross", "red")]) == Verdict(asked=True, kept=False)
    assert judge(edit, [green, replace(BLUE, row=1)]) == Verdict(asked=True, kept=False)
    assert judge(edit, [BLUE]) == Verdict(asked=False, kept=True)
    assert judge(edit, [replace(RED, colour="yellow"), BLUE]) == Verdict(asked=False, kept=True)
    moved = Edit(Scene((RED, BLUE)), "move the red circle to 4a", Scene((BLUE, replace(RED, row=3, column=0))), "move")
    assert judge(moved, [BLUE, replace(RED, row=3, column=0)]).right
    assert judge(moved, [RED, BLUE, replace(RED, row=3, column=0)]) == Verdict(asked=False, kept=True)


def test_held_out_wordings_are_of_known_words():
    trained = {w for group in TEMPLATES.values() for t in group[:-1] for w in t.split()}
    assert all(set(group[-1].split()) <= trained for group in TEMPLATES.values())


def test_what_is_told_apart_has_an_equal():
    for kind in ("place", "relation"):
        for edit in edits.edits(kind, 40, seed=1):
            gone = set(edit.source.objects) - set(edit.target.objects)
            assert len(gone) == 1
            assert Counter(o.kind for o in edit.source.objects)[gone.pop().kind] > 1


def test_training_never_sees_the_test():
    rng = np.random.default_rng(0)
    made = [training_edit(training_scene(FAMILIES[i % 4], rng), rng) for i in range(600)]
    assert sum(e is not None for e in made) > 150
    for edit in made:
        if edit is not None:
            assert not is_test_scene(edit.target)
            assert not edit.text.startswith("at ")
            assert not edit.text.endswith(" away")


def test_edits_of_the_larger_world():
    rng = np.random.default_rng(3)
    made = [training_edit(training_scene("multi", rng, HARD), rng) for _ in range(80)]
    found = [e for e in made if e is not None]
    assert len(found) > 10
    right = [
        judge(e, seen).right for e, seen in zip(found, detect(render([e.target for e in found]), HARD), strict=True)
    ]
    assert np.mean(right) > 0.9


def test_every_cell_is_described():
    question, text = questions.describe_cells(Scene((RED, BLUE)))
    assert text.startswith("1a none 1b red circle 1c none")
    words = build(instructions=True)
    assert 48 <= len(words.encode(text).ids) <= 52
    assert words.decode(words.encode(text).ids) == text
    for said in ("Describe every cell", "describe each cell.", "describe all cells"):
        assert words.encode(said).ids == words.encode(question).ids


def test_the_words_of_edits_come_after_the_others():
    plain, more = build().get_vocab(), build(instructions=True).get_vocab()
    assert plain.items() <= more.items()
    assert min(i for w, i in more.items() if w not in plain) == len(plain)
