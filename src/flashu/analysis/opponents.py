"""Who meets whom: FlashU, its parts, and the simplest things that are as fast."""

from __future__ import annotations

from dataclasses import replace

import torch

from flashu.analysis.contest import Contender
from flashu.analysis.lab import Lab
from flashu.calibrate.calibration import Calibration
from flashu.methods import FFNPrune, HeadCache, LayerSkip, Method, TokenPrune
from flashu.models.protocol import UnifiedModel
from flashu.plan import Task
from flashu.recipe import Recipe, exact, fast, paper, quality

VANILLA = "vanilla"
FLASHU = ("FlashU", "FlashU fast", "FlashU quality")
STEPS = (10, 20, 6, 30, 14, 8, 4)
"""Euler steps of vanilla runs, the more telling first."""
AGNOSTIC = "agnostic"


def alone(label: str, method: Method) -> Contender:
    return Contender(label, Recipe((method,), label))


def generation(lab: Lab) -> list[Contender]:
    known = agnostic(lab)
    few = sorted(s for s in STEPS[: lab.size.points + 1] if s < lab.engine.processor.defaults.steps)
    return [
        Contender(VANILLA, exact()),
        *(Contender(f"{VANILLA}, {s} steps", exact(), steps=s) for s in reversed(few)),
        *presets(),
        *(alone(f"reuse every {k} (FORA)", HeadCache("generation", k, 0.0)) for k in (2, 3, 5)),
        alone("skip layers", LayerSkip("generation", 0.2, 10, 0.0)),
        alone("FFN pruning, own mask", FFNPrune("generation", 0.2, 0.0)),
        replace(alone("FFN pruning, agnostic", FFNPrune("generation", 0.2, 0.0, AGNOSTIC)), calibration=known),
    ]


def understanding(lab: Lab) -> list[Contender]:
    return [
        Contender(VANILLA, exact()),
        *presets(),
        alone("skip layers", LayerSkip("understanding", 0.2, 10, 0.0)),
        *(alone(f"drop {r:.0%}, largest norms", TokenPrune(ratio=r)) for r in (0.5, 0.75)),
        *(alone(f"drop {r:.0%}, smallest norms", TokenPrune(ratio=r, side="smallest")) for r in (0.5, 0.75)),
        *(alone(f"drop {r:.0%}, at random", TokenPrune(ratio=r, score="random")) for r in (0.5, 0.75)),
        alone("FFN pruning, own mask", FFNPrune("understanding", 0.2, 0.0)),
        replace(
            alone("FFN pruning, agnostic", FFNPrune("understanding", 0.2, 0.0, AGNOSTIC)), calibration=agnostic(lab)
        ),
    ]


def presets() -> list[Contender]:
    return [Contender(label, recipe) for label, recipe in zip(FLASHU, (paper(), fast(), quality()), strict=True)]


def agnostic(lab: Lab) -> Calibration:
    """The lab's calibration with a mask that knows no task: neurons by the size of their weights alone."""
    model: UnifiedModel = lab.engine.model
    size = torch.stack([layer.mlp.down_proj.weight.float().abs().sum(0) for layer in model.layers]).cpu()
    return lab.calibration.with_scores(AGNOSTIC, size, {"from": "weights alone"})


def field(lab: Lab, task: Task) -> list[Contender]:
    """All contenders of a task, vanilla first."""
    return generation(lab) if task == "generation" else understanding(lab)
