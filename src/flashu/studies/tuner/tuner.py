"""The tuner from end to end: search, finalists on fresh items, the choice and its evidence."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import Progress
from rich.table import Table

from flashu.evaluation.ledger import Ledger
from flashu.evaluation.machine import installed
from flashu.inference.engine import Engine
from flashu.models.weights import checkpoint_hash
from flashu.plan import Task
from flashu.plan.presets import Target
from flashu.plan.recipe import Recipe, exact
from flashu.studies.lab.lab import REDUCED, Lab, shown
from flashu.studies.tuner.budget import Budget
from flashu.studies.tuner.preset import Finalist, chosen, confirmed, joined
from flashu.studies.tuner.scorer import Scorer
from flashu.studies.tuner.search import Search, candidates, counted

if TYPE_CHECKING:
    from optuna import Study

ROUNDS = range(3)
"""Of a trial."""
FRESH = range(3, 7)
"""Rounds of other items, on which the finalists are measured."""


@dataclass(frozen=True, eq=False)
class Found:
    """What a search ended with."""

    task: Task
    target: Target
    best: Finalist
    finalists: list[Finalist]
    evidence: dict[str, Any]

    def file(self, name: str, evidence: dict[str, Any], other: Path | None) -> dict[str, Any]:
        return joined(name, self.task, self.best.found.recipe, evidence, other, self.target)

    def table(self) -> Table:
        table = Table("recipe", "score", "change", "FLOPs", "over exact", "over paper", "methods", box=None)
        for f in self.finalists:
            found, facts = f.found, f.to_dict()
            ratios = [facts[k] for k in ("flops_ratio", "speedup_over_exact", "speedup_over_paper")]
            speed = ["" if ratio is None else f"{ratio:.2f}x" for ratio in ratios]
            mark = "> " if f is self.best else "" if f.keeps else "- "
            names = ", ".join(m.name for m in found.recipe.of(self.task)) or "none"
            table.add_row(mark + found.recipe.name, str(found.score), str(found.difference), *speed, names)
        return table


@dataclass(frozen=True, eq=False)
class Tuner:
    """``items``: of a trial that is not stopped early."""

    engine: Engine
    task: Task
    budget: Budget
    items: int = 72
    seed: int = 0
    progress: Progress | None = None

    def tune(self, trials: int, finalists: int, repeats: int, path: Path | None) -> Found:
        """``path``: the study's file; finished work is kept beside it."""
        size = replace(REDUCED, repeats=repeats)
        with Ledger(None if path is None else path.with_suffix(".ledger.jsonl")) as ledger:
            lab = Lab(self.engine, size, ledger, self.progress, self.seed)
            search = self._search(lab)
            study = search.study(path)
            with shown(self.progress, f"trials, {self.task}", trials) as advance:
                advance(counted(study))
                search.run(study, trials, lambda: advance(1))
            measured = confirmed(search, lab, search.finalists(study, finalists), FRESH)
            best = chosen(measured)
            return Found(self.task, self.target, best, measured, self._evidence(search, study, lab, measured, best))

    @cached_property
    def target(self) -> Target:
        """The model that a preset found here is for."""
        model = self.engine.model
        return Target(model.name, model.spec, checkpoint_hash(model))

    def _search(self, lab: Lab) -> Search:
        def flops(recipe: Recipe) -> int:
            return lab.engine_of(recipe).explain(self.task).totals.flops

        full = flops(exact())
        return Search(
            Scorer(self.task, lab.engine_of, max(1, self.items // len(ROUNDS)), self.seed, lab.ledger),
            self.task,
            self.engine.model.spec.layers,
            self.budget,
            lambda recipe: flops(recipe) / full,
            len(ROUNDS),
            self.seed,
            f"{self.task} {str(self.target.hash)[:12]} {self.items} {self.seed}",
        )

    def _evidence(
        self, search: Search, study: Study, lab: Lab, finalists: list[Finalist], best: Finalist
    ) -> dict[str, Any]:
        tried = candidates(study)
        own = {
            "budget": str(self.budget),
            "vanilla": asdict(search.base(FRESH).overall),
            "n": best.found.score.n,
            "searched": {
                "recipes": len(tried),
                "stopped_early": sum(c.stopped for c in tried),
                "items": self.items,
                "rounds": list(ROUNDS),
                "optuna": installed("optuna"),
            },
            "fresh_rounds": list(FRESH),
            "finalists": [f.to_dict() for f in finalists],
            "frontier": [
                {"recipe": c.recipe.to_dict()["methods"], "score": c.score.value, "flops_ratio": 1 / c.cost}
                for c in search.frontier(study)
            ],
        }
        return best.to_dict() | own | lab.about(task=self.task)
