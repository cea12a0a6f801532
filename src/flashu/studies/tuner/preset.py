"""A preset file: finalists measured on fresh items and by the clock, the fastest chosen, written with its evidence."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from flashu.errors import FlashUError, RecipeError
from flashu.evaluation.statistics import Spread
from flashu.plan import Task
from flashu.plan.presets import Target, load_recipe, paper
from flashu.plan.recipe import Recipe, exact
from flashu.studies.lab.lab import Lab
from flashu.studies.tuner.search import Candidate, Search

VANILLA, PAPER = "exact", "paper"


@dataclass(frozen=True, eq=False)
class Finalist:
    """A candidate on items no trial saw; ``seconds`` of one request in a run that took all finalists, the full model
    and the paper's preset (None where the model lacks what it needs) in turns. ``keeps``: the budget."""

    found: Candidate
    seconds: Spread
    exact: Spread
    paper: Spread | None
    keeps: bool

    def to_dict(self) -> dict[str, Any]:
        found, own = self.found, self.seconds
        return {
            "recipe": found.recipe.to_dict(),
            "score": asdict(found.score),
            "difference": asdict(found.difference) | {"significant": found.difference.significant},
            "flops_ratio": 1 / found.cost,
            "seconds": {"turns": own.values, "seconds": own.median, "low": own.low, "high": own.high},
            "exact_seconds": self.exact.median,
            "speedup_over_exact": own.speedup(self.exact).median,
            "speedup_over_paper": None if self.paper is None else own.speedup(self.paper).median,
            "keeps_budget": self.keeps,
        }


def confirmed(search: Search, lab: Lab, best: Sequence[Candidate], rounds: Sequence[int]) -> list[Finalist]:
    """The best, and the paper's preset as the last, on fresh rounds and by the clock."""
    recipes = [replace(c.recipe, name=f"finalist {k}") for k, c in enumerate(best, 1)]
    with suppress(RecipeError):  # the model may lack what the paper's preset needs
        search.cost(paper())
        recipes.append(paper())
    times = lab.times({r.name: (lab.engine_of(r), None) for r in [exact(), *recipes]}, search.task)
    finalists = []
    for recipe in recipes:
        found = search.measure(recipe, rounds, early=False)
        own, keeps = times[recipe.name], search.keeps(found, rounds)
        finalists.append(Finalist(found, own, times[VANILLA], times.get(PAPER), keeps))
    return finalists


def chosen(finalists: Sequence[Finalist]) -> Finalist:
    """The fastest by the clock of those that kept the budget on fresh items."""
    kept = [f for f in finalists if f.keeps]
    if not kept:
        raise FlashUError("no finalist keeps the budget on fresh items: search on more items or lower the budget")
    return max(kept, key=lambda f: f.seconds.speedup(f.exact).median)


def joined(
    name: str, task: Task, recipe: Recipe, evidence: dict[str, Any], other: Path | None, target: Target
) -> dict[str, Any]:
    """A preset file's content, for one model only: ``target``. The other task's methods and evidence come from the file
    ``other``; `RecipeError` if it was tuned on other weights."""
    assert target.spec is not None
    methods, solver, proofs = recipe.of(task), recipe.solver, {task: evidence}
    if other is not None:
        held = load_recipe(other, target)
        methods = (*methods, *(m for m in held.methods if m.task != task))
        solver = recipe.solver if task == "generation" else held.solver
        proofs = {**json.loads(other.read_text()).get("evidence", {}), **proofs}
    tuned = Recipe(methods, name, solver=solver).to_dict()
    return {"family": target.spec.family, "model_hash": target.hash, "recipe": tuned, "evidence": proofs}
