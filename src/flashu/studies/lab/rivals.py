"""Who meets whom: FlashU, its parts, and the simplest things that are as fast."""

from __future__ import annotations

from dataclasses import replace

import torch

from flashu.inference.calibrate.calibration import Calibration
from flashu.models.protocol import UnifiedModel
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
from flashu.plan.recipe import Recipe, exact, fast, paper, quality, shipped
from flashu.studies.lab.contest import Contender
from flashu.studies.lab.lab import Lab

VANILLA = "vanilla"
FLASHU = ("FlashU", "FlashU fast", "FlashU quality")
TUNED = ("balanced", "fast")
"""Presets the tuner found for a model, the careful one first."""
STEPS = (10, 20, 4, 30, 14, 6, 8, 40)
"""Euler steps of vanilla runs, the more telling first."""
SOLVED = {"adams": "Adams", "heun": "Heun", "unipc": "UniPC"}
AGNOSTIC = "agnostic"


def alone(label: str, method: Method) -> Contender:
    return Contender(label, Recipe((method,), label))


def solved(solver: str, forwards: int) -> Contender:
    label = f"{SOLVED[solver]}, {forwards} forwards"
    return Contender(label, Recipe((FewerSteps(steps=forwards),), label, solver=solver))


def generation(lab: Lab) -> list[Contender]:
    known = agnostic(lab)
    few = sorted(s for s in STEPS[: 2 * lab.size.points] if s < lab.engine.processor.defaults.steps)
    return [
        Contender(VANILLA, exact()),
        *(Contender(f"{VANILLA}, {s} steps", exact(), steps=s) for s in reversed(few)),
        *presets(lab),
        *(solved(solver, s) for solver in ("adams", "unipc") for s in (6, 10, 20)),
        *(solved("heun", s) for s in (10, 20)),
        *(alone(f"reuse, every {k} (FORA)", HeadCache("generation", k, 0.0)) for k in (2, 3, 5)),
        *(alone(f"Taylor, every {k} (TaylorSeer)", TaylorCache(interval=k)) for k in (3, 5)),
        *(alone(f"reuse below {c:g} (TeaCache idea)", ChangeCache(threshold=c)) for c in (0.05, 0.1)),
        *(alone(f"guidance to {stop:.0%}", GuidanceInterval(stop=stop)) for stop in (0.5, 0.8)),
        alone("guidance from 20% to 80%", GuidanceInterval(start=0.2, stop=0.8)),
        alone("unconditional, every 5 (FasterCache idea)", UnconditionalReuse(interval=5)),
        alone("skip layers", LayerSkip("generation", 0.2, 10, 0.0)),
        alone("FFN pruning, own mask", FFNPrune("generation", 0.2, 0.0)),
        replace(alone("FFN pruning, agnostic", FFNPrune("generation", 0.2, 0.0, AGNOSTIC)), calibration=known),
    ]


def understanding(lab: Lab) -> list[Contender]:
    return [
        Contender(VANILLA, exact()),
        *presets(lab),
        alone("skip layers", LayerSkip("understanding", 0.2, 10, 0.0)),
        *(alone(f"drop {r:.0%}, largest norms", TokenPrune(ratio=r)) for r in (0.5, 0.75)),
        *(alone(f"drop {r:.0%}, smallest norms", TokenPrune(ratio=r, side="smallest")) for r in (0.5, 0.75)),
        *(alone(f"drop {r:.0%}, at random", TokenPrune(ratio=r, score="random")) for r in (0.5, 0.75)),
        alone("FFN pruning, own mask", FFNPrune("understanding", 0.2, 0.0)),
        replace(
            alone("FFN pruning, agnostic", FFNPrune("understanding", 0.2, 0.0, AGNOSTIC)), calibration=agnostic(lab)
        ),
    ]


def presets(lab: Lab) -> list[Contender]:
    ours = [Contender(label, recipe) for label, recipe in zip(FLASHU, (paper(), fast(), quality()), strict=True)]
    return ours + tuned(lab)


def tuned(lab: Lab) -> list[Contender]:
    """The shipped presets that were tuned on this model."""
    files = {name: shipped(name, lab.model) for name in TUNED}
    return [Contender(f"tuned {name}", Recipe.from_file(path)) for name, path in files.items() if path is not None]


@torch.no_grad()
def agnostic(lab: Lab) -> Calibration:
    """The lab's calibration with a mask that knows no task: neurons by the size of their weights alone."""
    model: UnifiedModel = lab.engine.model
    size = torch.stack([layer.mlp.down_proj.weight.float().abs().sum(0) for layer in model.layers]).cpu()
    return lab.calibration.with_scores(AGNOSTIC, size, {"from": "weights alone"})
