"""What a recipe's work is worth, in rounds of items that go further the longer one looks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from flashu.evaluation import work
from flashu.evaluation.scenes_dpg import DPG
from flashu.evaluation.scenes_geneval import GenEval
from flashu.evaluation.scenes_questions import PARTS, Und
from flashu.evaluation.score_ledger import Ledger
from flashu.evaluation.scores import Mark, Sheet
from flashu.inference.engine import Engine
from flashu.plan import Task
from flashu.plan.recipe import Recipe
from flashu.scenes.benchmark import CATEGORIES

GENEVAL, DENSE = "GenEval", "DPG"
APART = 10_000
"""Between the seeds of two rounds: more than the items of one."""


class Judge(Protocol):
    """Scores a recipe on one round; all recipes meet the same items there."""

    def sheet(self, recipe: Recipe, number: int) -> Sheet: ...


@dataclass(frozen=True)
class Drawings:
    """Half the images of a round on the six GenEval categories, half on dense prompts; both count alike."""

    engine_of: Callable[[Recipe], Engine]
    items: int = 24
    seed: int = 0
    ledger: Ledger = field(default_factory=Ledger)

    def sheet(self, recipe: Recipe, number: int) -> Sheet:
        seed = self.seed + APART * (number + 1)
        each = max(1, self.items // (2 * len(CATEGORIES)))
        engine = self.engine_of(recipe)
        world = work.readable(engine)
        short = GenEval.make(each, 1, seed, world)
        dense = DPG.make(max(1, self.items - len(short.texts)), 1, seed, world)
        texts, seeds = [*short.texts, *dense.texts], [*short.seeds, *dense.seeds]
        drawn = work.draw(engine, texts, seeds, batch=len(texts), ledger=self.ledger)
        seen = [d.seen for d in drawn]
        first, second = short.sheet(seen[: len(short.texts)]), dense.sheet(seen[len(short.texts) :])
        categories = [mark for part in first.parts for mark in first.marks[part]]
        return Sheet({GENEVAL: categories, DENSE: second.marks["Facts"]}, (GENEVAL, DENSE))


@dataclass(frozen=True)
class Answers:
    """The five question suites, counting alike; the empty-board questions are left out."""

    engine_of: Callable[[Recipe], Engine]
    items: int = 24
    seed: int = 0
    ledger: Ledger = field(default_factory=Ledger)

    def sheet(self, recipe: Recipe, number: int) -> Sheet:
        each = max(2, self.items // 6)  # a multiple-choice item takes four questions, and there are half as many
        engine = self.engine_of(recipe)
        suite = Und.make(each, self.seed + APART * (number + 1), work.asked_about(engine))
        asked = [a.shown for a in suite.asked]
        said = work.answer(engine, asked, batch=len(asked), ledger=self.ledger)
        found = suite.sheet([*said, *[""] * len(suite.blind)])
        # Groups are numbered anew in every round.
        return Sheet({p: [Mark((number, m.cluster), m.value) for m in found.marks[p]] for p in PARTS}, PARTS)


def judge_of(
    task: Task, engine_of: Callable[[Recipe], Engine], items: int, seed: int, ledger: Ledger
) -> Drawings | Answers:
    return (Drawings if task == "generation" else Answers)(engine_of, items, seed, ledger)


def merged(sheets: Sequence[Sheet]) -> Sheet:
    """Several rounds as one."""
    parts = sheets[0].parts
    return Sheet({part: [mark for sheet in sheets for mark in sheet.marks[part]] for part in parts}, parts)
