"""The recipes that are compared: FlashU, its parts, presets, and the baselines it must beat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from flashu.inference.calibrate.calibration import Calibration
from flashu.inference.engine import recipe_for
from flashu.plan import Task
from flashu.plan.methods import (
    ChangeCache,
    FewerSteps,
    FFNPrune,
    GuidanceInterval,
    HeadCache,
    LayerSkip,
    Method,
    TaylorCache,
    TokenPrune,
    UnconditionalReuse,
)
from flashu.plan.presets import fast, paper, quality, tuned_presets
from flashu.plan.recipe import Recipe, exact

if TYPE_CHECKING:
    from flashu.studies.lab.lab import Lab

VANILLA, FLASHU = "vanilla", "FlashU"
TUNED = ("balanced", "fast")
"""Presets the tuner found for a model, the careful one first."""
STEPS = (10, 20, 4, 30, 14, 6, 8, 40)
"""Euler steps of vanilla runs, the more informative first."""
SOLVERS = {"adams": "Adams", "heun": "Heun", "unipc": "UniPC"}
AGNOSTIC = "agnostic"
PARTS = {
    "layer skipping": "layer_skip",
    "adaptive guidance": "adaptive_guidance",
    "head cache": "head_cache",
    "FFN pruning": "ffn_prune",
    "token pruning": "token_prune",
}
"""FlashU's methods."""


@dataclass(frozen=True, eq=False)
class Case:
    """A recipe under the name a table gives it; ``steps`` other than the model's; ``calibration`` other than the
    lab's; ``kind``: the family of methods it belongs to; ``cells`` that its row begins with, such as its settings."""

    label: str
    recipe: Recipe
    steps: int | None = None
    calibration: Calibration | None = None
    kind: str = ""
    cells: Mapping[str, Any] = field(default_factory=dict)


def vanilla() -> Case:
    return Case(VANILLA, exact(), kind=VANILLA)


def flashu(lab: Lab) -> Case:
    return Case(FLASHU, lab.fitted(paper()), kind=FLASHU)


def without_parts(lab: Lab, task: Task) -> list[Case]:
    """FlashU less each of its methods for a task."""
    whole = lab.fitted(paper())
    names = {method.name for method in whole.of(task)}
    return [Case(f"without {part}", whole.without(name)) for part, name in PARTS.items() if name in names]


def presets(lab: Lab) -> list[Case]:
    own = (("FlashU fast", fast()), ("FlashU quality", quality()))
    return [flashu(lab), *(Case(label, lab.fitted(recipe), kind=FLASHU) for label, recipe in own), *tuned(lab)]


def tuned(lab: Lab) -> list[Case]:
    """The shipped presets that were tuned on this model."""
    model = lab.engine.model
    names = [name for name in TUNED if f"{model.name}-{name}" in tuned_presets()]
    return [Case(f"tuned {name}", recipe_for(model, f"{model.name}-{name}"), kind="tuned preset") for name in names]


def generation(lab: Lab) -> list[Case]:
    """FlashU and its baselines for drawing, as far as the model has what they work on."""
    few = sorted((s for s in STEPS[: 2 * lab.size.points] if s < lab.steps), reverse=True)
    every = [
        vanilla(),
        *(Case(f"{VANILLA}, {s} steps", exact(), s, kind="fewer Euler steps") for s in few),
        *presets(lab),
        *(solved(solver, s) for solver in ("adams", "unipc") for s in (6, 10, 20)),
        *(solved("heun", s) for s in (10, 20)),
        *(alone("cache", f"reuse, every {k} (FORA)", HeadCache("generation", k, 0.0)) for k in (2, 3, 5)),
        *(alone("cache", f"Taylor, every {k} (TaylorSeer)", TaylorCache(interval=k)) for k in (3, 5)),
        *(alone("cache", f"reuse below {c:g} (TeaCache idea)", ChangeCache(threshold=c)) for c in (0.05, 0.1)),
        *(alone("guidance", f"guidance to {stop:.0%}", GuidanceInterval(stop=stop)) for stop in (0.5, 0.8)),
        alone("guidance", "guidance from 20% to 80%", GuidanceInterval(start=0.2, stop=0.8)),
        alone("guidance", "unconditional, every 5 (FasterCache idea)", UnconditionalReuse(interval=5)),
        alone("pruning", "skip layers", LayerSkip("generation", 0.2, 10, 0.0)),
        alone("pruning", "FFN pruning, own mask", FFNPrune("generation", 0.2, 0.0)),
        alone("pruning", "FFN pruning, agnostic", FFNPrune("generation", 0.2, 0.0, AGNOSTIC), agnostic(lab)),
    ]
    return [case for case in every if lab.allows(case.recipe)]


def understanding(lab: Lab) -> list[Case]:
    """FlashU and its baselines for answering."""
    return [
        vanilla(),
        *presets(lab),
        alone("pruning", "skip layers", LayerSkip("understanding", 0.2, 10, 0.0)),
        *(alone("pruning", f"drop {r:.0%}, largest norms", TokenPrune(ratio=r)) for r in (0.5, 0.75)),
        *(alone("pruning", f"drop {r:.0%}, smallest norms", TokenPrune(ratio=r, side="smallest")) for r in (0.5, 0.75)),
        *(alone("pruning", f"drop {r:.0%}, at random", TokenPrune(ratio=r, score="random")) for r in (0.5, 0.75)),
        alone("pruning", "FFN pruning, own mask", FFNPrune("understanding", 0.2, 0.0)),
        alone("pruning", "FFN pruning, agnostic", FFNPrune("understanding", 0.2, 0.0, AGNOSTIC), agnostic(lab)),
    ]


def alone(kind: str, label: str, method: Method, calibration: Calibration | None = None) -> Case:
    return Case(label, Recipe((method,), label), None, calibration, kind)


def solved(solver: str, forwards: int) -> Case:
    label = f"{SOLVERS[solver]}, {forwards} forwards"
    return Case(label, Recipe((FewerSteps(steps=forwards),), label, solver=solver), kind="better solver")


@torch.no_grad()
def agnostic(lab: Lab) -> Calibration:
    """The lab's calibration with a mask that knows no task: neurons by the size of their weights alone."""
    size = torch.stack([f.importance(torch.ones(f.neurons)).cpu() for f in lab.engine.model.ffns().values()])
    return lab.calibration.with_scores(AGNOSTIC, size, {"from": "weights alone"})
