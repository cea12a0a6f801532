"""The tuner's result: finalists measured on fresh items and by the clock, one chosen, written with its evidence."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from flashu.errors import FlashUError, RecipeError
from flashu.plan import Task
from flashu.plan.recipe import Recipe, exact, paper
from flashu.studies.lab.lab import Lab, Timing
from flashu.studies.tuner.search import Search, Tried

VANILLA, PAPER = "exact", "paper"


@dataclass(frozen=True, eq=False)
class Final:
    """A finalist on items no trial saw; ``seconds`` of one request in a run that took all finalists, the full model
    and the paper's preset (None where the model has no room for it) in turns."""

    tried: Tried
    seconds: Timing
    exact: Timing
    paper: Timing | None
    keeps: bool

    def to_dict(self) -> dict[str, Any]:
        t = self.tried
        return {
            "recipe": t.recipe.to_dict(),
            "score": asdict(t.score),
            "difference": asdict(t.difference) | {"significant": t.difference.significant},
            "flops_ratio": 1 / t.cost,
            "seconds": asdict(self.seconds),
            "exact_seconds": self.exact.seconds,
            "speedup_over_exact": self.seconds.speedup(self.exact).seconds,
            "speedup_over_paper": None if self.paper is None else self.seconds.speedup(self.paper).seconds,
            "keeps_budget": self.keeps,
        }


def confirmed(search: Search, lab: Lab, finalists: Sequence[Tried], rounds: Sequence[int]) -> list[Final]:
    """Finalists, and the paper's preset as the last, on fresh rounds and by the clock."""
    recipes = [replace(t.recipe, name=f"finalist {k}") for k, t in enumerate(finalists, 1)]
    recipes += [paper()] if fits(search, paper()) else []
    engines = {r.name: (lab.engine_of(r), None) for r in [exact(), *recipes]}
    times = lab.times(engines, search.task)
    finals = []
    for recipe in recipes:
        tried = search.judged(recipe, rounds, early=False)
        kept = search.keeps(tried, rounds)
        finals.append(Final(tried, times[recipe.name], times[VANILLA], times.get(PAPER), kept))
    return finals


def fits(search: Search, recipe: Recipe) -> bool:
    """Whether the model has every room the recipe works on."""
    try:
        search.cost(recipe)
    except RecipeError:
        return False
    return True


def chosen(finals: Sequence[Final]) -> Final:
    """The fastest by the clock of those that kept the budget on fresh items."""
    kept = [f for f in finals if f.keeps]
    if not kept:
        raise FlashUError("no finalist keeps the budget on fresh items: search on more items or lower the budget")
    return max(kept, key=lambda f: f.seconds.speedup(f.exact).seconds)


def joined(name: str, task: Task, recipe: Recipe, evidence: dict[str, Any], other: Path | None) -> dict[str, Any]:
    """A preset file's content; the other task's methods and evidence come from the file ``other``."""
    methods, solver, proofs = recipe.of(task), recipe.solver, {task: evidence}
    if other is not None:
        held = Recipe.from_file(other)
        methods = (*methods, *(m for m in held.methods if m.task != task))
        solver = recipe.solver if task == "generation" else held.solver
        proofs = {**json.loads(other.read_text()).get("evidence", {}), **proofs}
    return {"recipe": Recipe(methods, name, solver=solver).to_dict(), "evidence": proofs}
