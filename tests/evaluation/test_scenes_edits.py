"""The edit suites: what is asked for and what is kept apart, beside a copied picture."""

from __future__ import annotations

from flashu.evaluation.scenes_edits import ASKED, KEPT, EditSuite
from flashu.scenes.edits import EDIT_KINDS, HARD_KINDS


def test_a_perfect_editor_and_a_copier() -> None:
    for hard, kinds in ((False, EDIT_KINDS), (True, HARD_KINDS)):
        suite = EditSuite.make(12, seed=3, hard=hard)
        assert len(suite.texts) == len(set(suite.seeds)) == len(suite.sources) == 12 * len(kinds)
        perfect = suite.score([e.target.objects for e in suite.edits]).scores()
        assert {name: score.value for name, score in perfect.items()} == dict.fromkeys(
            (*kinds, ASKED, KEPT, "Overall"), 1.0
        )
        copied = suite.copied().scores()
        assert copied["Overall"].value == copied[ASKED].value == 0
        assert copied[KEPT].value == 1


def test_half_of_it() -> None:
    suite = EditSuite.make(10, seed=0)
    seen = [e.target.objects if i % 2 else () for i, e in enumerate(suite.edits)]
    scores = suite.score(seen).scores()
    assert scores["recolour"].value == 0.5
    assert scores["Overall"].n == 50
