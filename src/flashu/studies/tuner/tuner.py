"""The tuner from end to end: search, finalists on fresh items, the choice and its evidence."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from flashu.bench.machine import installed
from flashu.evaluation.ledger import Ledger
from flashu.inference.engine import Engine
from flashu.models.weights import checkpoint_hash
from flashu.plan import Task
from flashu.plan.recipe import Recipe, exact
from flashu.studies.lab.lab import REDUCED, Bars, Lab
from flashu.studies.tuner.budget import Budget
from flashu.studies.tuner.judge import judge_of
from flashu.studies.tuner.preset import Final, chosen, confirmed, joined
from flashu.studies.tuner.search import Search, counted, finished

if TYPE_CHECKING:
    from optuna import Study

ROUNDS, FRESH = 3, 4
"""Rounds of a trial, and rounds of other items that its finalists must stand."""


@dataclass(frozen=True, eq=False)
class Found:
    """What a search ended with."""

    task: Task
    best: Final
    finals: list[Final]
    evidence: dict[str, Any]

    def file(self, name: str, evidence: dict[str, Any], other: Path | None) -> dict[str, Any]:
        return joined(name, self.task, self.best.tried.recipe, evidence, other)

    def table(self) -> Table:
        shown = Table("recipe", "score", "change", "FLOPs", "over exact", "over paper", "methods", box=None)
        for f in self.finals:
            t, told = f.tried, f.to_dict()
            ratios = [told[k] for k in ("flops_ratio", "speedup_over_exact", "speedup_over_paper")]
            speed = ["" if ratio is None else f"{ratio:.2f}x" for ratio in ratios]
            mark = "> " if f is self.best else "" if f.keeps else "- "
            names = ", ".join(m.name for m in t.recipe.of(self.task)) or "none"
            shown.add_row(mark + t.recipe.name, str(t.score), str(t.difference), *speed, names)
        return shown


@dataclass(frozen=True, eq=False)
class Tuner:
    """``items``: of a trial that is not stopped early. ``model``: how it is called."""

    engine: Engine
    task: Task
    budget: Budget
    items: int = 72
    seed: int = 0
    model: str = "scenes"
    bars: Bars | None = None

    def tune(self, trials: int, finalists: int, repeats: int, path: Path | None) -> Found:
        """``path``: the study's file; finished work is kept beside it."""
        with Ledger(None if path is None else path.with_suffix(".ledger.jsonl")) as ledger:
            return self._tune(ledger, trials, finalists, repeats, path)

    def _tune(self, ledger: Ledger, trials: int, finalists: int, repeats: int, path: Path | None) -> Found:
        lab = Lab(self.engine, replace(REDUCED, repeats=repeats), ledger, self.bars, self.model, self.seed)
        search = self.search(lab)
        study = search.study(path)
        self._run(search, study, trials)
        best = search.finalists(study, finalists)
        finals = confirmed(search, lab, best, range(ROUNDS, ROUNDS + FRESH))
        winner = chosen(finals)
        return Found(self.task, winner, finals, self._evidence(search, study, lab, finals, winner))

    def search(self, lab: Lab) -> Search:
        flops = self._flops(lab, exact())
        judge = judge_of(self.task, lab.engine_of, max(1, self.items // ROUNDS), self.seed, lab.ledger)
        return Search(
            judge,
            self.task,
            self.engine.model.num_layers,
            self.budget,
            lambda recipe: self._flops(lab, recipe) / flops,
            ROUNDS,
            self.seed,
            f"{self.task} {checkpoint_hash(self.engine.model)[:12]} {self.items} {self.seed}",
        )

    def _flops(self, lab: Lab, recipe: Recipe) -> int:
        return lab.engine_of(recipe).explain(self.task).totals.flops

    def _run(self, search: Search, study: Study, trials: int) -> None:
        if self.bars is None:
            return search.run(study, trials)
        bars, task = self.bars, self.bars.add_task(f"trials, {self.task}", total=trials)
        bars.advance(task, counted(study))
        search.run(study, trials, lambda _: bars.advance(task))
        bars.remove_task(task)
        return None

    def _evidence(self, search: Search, study: Study, lab: Lab, finals: list[Final], best: Final) -> dict[str, Any]:
        rounds = range(ROUNDS, ROUNDS + FRESH)
        tried = finished(study)
        return (
            best.to_dict()
            | {
                "budget": str(self.budget),
                "vanilla": asdict(search.base(rounds).overall),
                "n": best.tried.score.n,
                "searched": {
                    "recipes": len(tried),
                    "stopped_early": sum(t.stopped for t in tried),
                    "items": self.items,
                    "rounds": list(range(ROUNDS)),
                    "optuna": installed("optuna"),
                },
                "fresh_rounds": list(rounds),
                "finalists": [f.to_dict() for f in finals],
                "frontier": [
                    {"recipe": t.recipe.to_dict()["methods"], "score": t.score.value, "flops_ratio": 1 / t.cost}
                    for t in search.frontier(study)
                ],
            }
            | lab.about(task=self.task)
        )
