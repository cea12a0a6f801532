"""What a recipe's work is worth, in rounds of items that go further the longer one looks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from flashu.evaluation import scenes_items
from flashu.evaluation.ledger import Ledger
from flashu.evaluation.scenes_drawing import DPGSuite, GenEvalSuite
from flashu.evaluation.scenes_questions import SUITES, QuestionSuite
from flashu.evaluation.score_table import ScoreTable
from flashu.evaluation.statistics import ItemScore
from flashu.inference.engine import Engine
from flashu.plan import Task
from flashu.plan.recipe import Recipe
from flashu.scenes.benchmark import CATEGORIES

GENEVAL, DENSE = "GenEval", "DPG"
APART = 10_000
"""Between the seeds of two rounds: more than the items of one."""


class Judge(Protocol):
    """Scores a recipe on one round; all recipes meet the same items there."""

    def sheet(self, recipe: Recipe, number: int) -> ScoreTable: ...


@dataclass(frozen=True)
class Drawings:
    """Half the images of a round on the six GenEval categories, half on dense prompts; both count alike."""

    engine_of: Callable[[Recipe], Engine]
    items: int = 24
    seed: int = 0
    ledger: Ledger = field(default_factory=Ledger)

    def sheet(self, recipe: Recipe, number: int) -> ScoreTable:
        seed = self.seed + APART * (number + 1)
        each = max(1, self.items // (2 * len(CATEGORIES)))
        engine = self.engine_of(recipe)
        world = scenes_items.drawn_world(engine)
        short = GenEvalSuite.make(each, 1, seed, world)
        dense = DPGSuite.make(max(1, self.items - len(short.texts)), 1, seed, world)
        texts, seeds = [*short.texts, *dense.texts], [*short.seeds, *dense.seeds]
        drawn = scenes_items.draw(engine, texts, seeds, batch=len(texts), ledger=self.ledger)
        seen = [d.objects for d in drawn]
        first, second = short.score(seen[: len(short.texts)]), dense.score(seen[len(short.texts) :])
        categories = [mark for part in first.mean_of for mark in first.columns[part]]
        return ScoreTable({GENEVAL: categories, DENSE: second.columns["Facts"]}, (GENEVAL, DENSE))


@dataclass(frozen=True)
class Answers:
    """The five question suites, counting alike; the empty-board questions are left out."""

    engine_of: Callable[[Recipe], Engine]
    items: int = 24
    seed: int = 0
    ledger: Ledger = field(default_factory=Ledger)

    def sheet(self, recipe: Recipe, number: int) -> ScoreTable:
        each = max(2, self.items // 6)  # a multiple-choice item takes four questions, and there are half as many
        engine = self.engine_of(recipe)
        suite = QuestionSuite.make(each, self.seed + APART * (number + 1), scenes_items.asked_world(engine))
        asked = suite.questions[: len(suite.items)]
        said = scenes_items.answer(engine, asked, batch=len(asked), ledger=self.ledger)
        found = suite.score(said)
        # Groups are numbered anew in every round.
        return ScoreTable(
            {p: [ItemScore((number, m.cluster), m.value) for m in found.columns[p]] for p in SUITES}, SUITES
        )


def judge_of(
    task: Task, engine_of: Callable[[Recipe], Engine], items: int, seed: int, ledger: Ledger
) -> Drawings | Answers:
    return (Drawings if task == "generation" else Answers)(engine_of, items, seed, ledger)


def merged(sheets: Sequence[ScoreTable]) -> ScoreTable:
    """Several rounds as one."""
    parts = sheets[0].mean_of
    return ScoreTable({part: [mark for sheet in sheets for mark in sheet.columns[part]] for part in parts}, parts)
