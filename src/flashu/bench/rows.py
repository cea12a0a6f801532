"""The rows of a benchmark: one list per task. A row is a recipe and the way it runs."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from flashu.errors import FlashUError
from flashu.plan import Task
from flashu.plan.presets import PRESETS, paper
from flashu.plan.recipe import Recipe, exact

ORIGINAL, EXACT, PAPER, FEWER = "original", "exact", "paper", "fewer-steps"


@dataclass(frozen=True)
class Row:
    """``recipe`` None: the original program's own loop. ``graphs``: captured, which needs CUDA. ``in_place``: FFN banks
    are slices of the model's own weights. ``same_cost_as``: as many forwards of the recipe as cost what that row costs.
    """

    name: str
    recipe: Recipe | None = None
    compiled: bool = False
    graphs: bool = False
    in_place: bool = False
    same_cost_as: str = ""


def rows_of(task: Task) -> tuple[Row, ...]:
    """Every row there is for a task."""
    full = paper()
    names = [m.name for m in full.of(task)]
    hybrid = tuple(replace(m, tau=0) if m.name == "ffn_prune" else m for m in full.methods)  # type: ignore[call-arg]
    only = {name: Recipe(tuple(m for m in full.of(task) if m.name == name), f"{name} only") for name in names}
    rows = [
        Row(ORIGINAL),
        Row(EXACT, exact()),
        Row("exact+compile", exact(), compiled=True),
        Row("exact+compile+graphs", exact(), compiled=True, graphs=True),
        *(Row(recipe.name, recipe) for recipe in only.values()),
        Row(PAPER, full),
        Row("paper+compile", full, compiled=True),
        Row("paper in place", full, in_place=True),
        *(Row(f"{PAPER} without {name}", full.without(name)) for name in names),
        Row(f"{PAPER} without hybrid", Recipe(hybrid, f"{PAPER} without hybrid")),
        *(Row(name, make()) for name, make in PRESETS.items() if name not in (EXACT, PAPER)),
    ]
    if task == "generation":
        rows.append(Row(FEWER, exact(), same_cost_as=PAPER))
    return tuple(rows)


def choose_rows(task: Task, names: Sequence[str] | None = None) -> tuple[Row, ...]:
    """The rows named, in the order of the list; None = all. An unknown name raises `FlashUError`."""
    known = {row.name: row for row in rows_of(task)}
    if names is None:
        return tuple(known.values())
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"rows are {', '.join(known)}"
            raise FlashUError(f"there is no row {name!r} for {task}: {hint}")
    for row in known.values():
        if row.name in names and row.same_cost_as and row.same_cost_as not in names:
            raise FlashUError(f"row {row.name!r} costs what {row.same_cost_as!r} costs: name that row too")
    return tuple(row for name, row in known.items() if name in names)
