"""The score of a recipe, in rounds of items: the more rounds, the surer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from flashu.evaluation import scenes_items
from flashu.evaluation.ledger import Ledger
from flashu.evaluation.scenes_drawing import FACTS, DPGSuite, GenEvalSuite
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


@dataclass(frozen=True)
class Scorer:
    """``items`` of each round, the same for every recipe. Generation: half the images on the six GenEval categories,
    half on dense prompts, both counting equally. Understanding: the five question suites, counting equally, without
    the questions about an empty board."""

    task: Task
    engine_of: Callable[[Recipe], Engine]
    items: int = 24
    seed: int = 0
    ledger: Ledger = field(default_factory=Ledger)

    def score(self, recipe: Recipe, number: int) -> ScoreTable:
        """A recipe's scores in one round."""
        engine, seed = self.engine_of(recipe), self.seed + APART * (number + 1)
        return self._drawn(engine, seed) if self.task == "generation" else self._answered(engine, seed, number)

    def _drawn(self, engine: Engine, seed: int) -> ScoreTable:
        world = scenes_items.drawn_world(engine)
        short = GenEvalSuite.make(max(1, self.items // (2 * len(CATEGORIES))), 1, seed, world)
        count = len(short.texts)
        dense = DPGSuite.make(max(1, self.items - count), 1, seed, world)
        texts, seeds = [*short.texts, *dense.texts], [*short.seeds, *dense.seeds]
        drawn = scenes_items.draw(engine, texts, seeds, batch=len(texts), ledger=self.ledger)
        seen = [drawing.objects for drawing in drawn]
        categories = [item for items in short.score(seen[:count]).columns.values() for item in items]
        return ScoreTable({GENEVAL: categories, DENSE: dense.score(seen[count:]).columns[FACTS]}, (GENEVAL, DENSE))

    def _answered(self, engine: Engine, seed: int, number: int) -> ScoreTable:
        each = max(2, self.items // 6)  # a multiple-choice item takes four questions, and there are half as many
        suite = QuestionSuite.make(each, seed, scenes_items.asked_world(engine))
        asked = suite.questions[: len(suite.items)]
        found = suite.score(scenes_items.answer(engine, asked, batch=len(asked), ledger=self.ledger)).columns
        # Groups are numbered anew in every round.
        columns = {name: [ItemScore((number, i.cluster), i.value) for i in found[name]] for name in SUITES}
        return ScoreTable(columns, SUITES)


def merged(tables: Sequence[ScoreTable]) -> ScoreTable:
    """Several rounds as one."""
    names = tables[0].mean_of
    return ScoreTable({name: [item for table in tables for item in table.columns[name]] for name in names}, names)
