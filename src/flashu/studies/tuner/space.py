"""The search space, all of it: which methods a recipe may hold and with which settings."""

from __future__ import annotations

from typing import Any, Protocol

from flashu.plan import SOLVERS, Task
from flashu.plan.methods import (
    AdaptiveGuidance,
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
from flashu.plan.recipe import Recipe

OFF = "off"
TAU = (0.0, 0.1, 0.2, 0.3)
"""The window of full forwards at the end, one for all methods as in the paper."""
STEPS = (1.0, 0.8, 0.7, 0.6, 0.5, 0.4, 0.32, 0.24, 0.2, 0.16, 0.12)
FFN = (0.0, 0.1, 0.2, 0.3, 0.4)
SKIP = (0.0, 0.1, 0.2, 0.3)
PROBES = (5, 10)
GUIDANCE = (OFF, "adaptive", "interval")
LOW = (0.5, 0.75, 0.9)
SWITCH = (0.2, 0.3, 0.5)
START = (0.0, 0.1, 0.2)
STOP = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
CACHE = (OFF, "head", "taylor", "change")
INTERVAL = (2, 3, 4, 5)
ORDER = (1, 2)
THRESHOLD = (0.02, 0.05, 0.1, 0.15)
UNCONDITIONAL = (1, 2, 3, 5)
"""Interval; 1 = computed every time."""
TOKENS = (0.0, 0.25, 0.5, 0.625, 0.75, 0.875)
LAYER = (1, 2, 3, 4)
DROP = {
    "largest": ("value_norm", "largest"),
    "smallest": ("value_norm", "smallest"),
    "key_norm": ("key_norm", "smallest"),
    "attention": ("attention", "smallest"),
    "duplication": ("duplication", "largest"),
}
"""Which visual tokens go: by a score, on a side."""


class Choices(Protocol):
    """A trial (Optuna's), or anything else that chooses."""

    def suggest_categorical(self, name: str, choices: Any) -> Any: ...


def draft(choose: Choices, task: Task, layers: int) -> Recipe:
    """The recipe a trial stands for, on a model of so many layers. Settings of methods left out are not asked for."""
    return (drawing if task == "generation" else seeing)(choose, layers)


def drawing(choose: Choices, layers: int) -> Recipe:
    pick = choose.suggest_categorical
    tau = pick("tau", TAU)
    methods = [*pruned(choose, "generation", tau)]
    steps = pick("steps", STEPS)
    if steps < 1:
        methods.append(FewerSteps(steps=steps))
    guidance = pick("guidance", GUIDANCE)
    if guidance == "adaptive":
        methods.append(
            AdaptiveGuidance(low=pick("low", LOW), switch=pick("switch", SWITCH), steps=0, task="generation")
        )
    if guidance == "interval":
        methods.append(GuidanceInterval(start=pick("start", START), stop=pick("stop", STOP)))
    every = pick("unconditional", UNCONDITIONAL)
    if every > 1:
        methods.append(UnconditionalReuse(interval=every, tau=tau))
    cache = pick("cache", CACHE)
    if cache == "head":
        methods.append(HeadCache(interval=pick("cache_interval", INTERVAL), tau=tau))
    if cache == "taylor":
        methods.append(TaylorCache(interval=pick("cache_interval", INTERVAL), order=pick("order", ORDER), tau=tau))
    if cache == "change":
        methods.append(ChangeCache(threshold=pick("threshold", THRESHOLD), tau=tau))
    return Recipe(tuple(methods), "tuned", solver=pick("solver", SOLVERS))


def seeing(choose: Choices, layers: int) -> Recipe:
    pick = choose.suggest_categorical
    methods = [*pruned(choose, "understanding", pick("tau", TAU))]
    ratio = pick("tokens", TOKENS)
    if ratio:
        score, side = DROP[pick("score", tuple(DROP))]
        at = pick("layer", tuple(k for k in LAYER if k < layers))
        methods.append(TokenPrune(layer=at, ratio=ratio, side=side, score=score))  # type: ignore[arg-type]
    return Recipe(tuple(methods), "tuned")


def pruned(choose: Choices, task: Task, tau: float) -> list[Method]:
    """What both tasks may hold: fewer neurons, fewer layers."""
    pick = choose.suggest_categorical
    methods: list[Method] = []
    ratio = pick("ffn", FFN)
    if ratio:
        methods.append(FFNPrune(task, ratio, tau))
    skipped = pick("skip", SKIP)
    if skipped:
        methods.append(LayerSkip(task, skipped, pick("probes", PROBES), tau))
    return methods


_DRAWING: dict[str, Any] = {
    "tau": 0.0,
    "ffn": 0.0,
    "skip": 0.0,
    "steps": 1.0,
    "guidance": OFF,
    "unconditional": 1,
    "cache": OFF,
}
_SEEING: dict[str, Any] = {"tau": 0.0, "ffn": 0.0, "skip": 0.0, "tokens": 0.0}


def known(task: Task) -> list[dict[str, Any]]:
    """Where a search begins: the full model, the paper's settings, and what is simplest."""
    if task == "understanding":
        own: dict[str, Any] = {"tau": 0.3, "ffn": 0.1, "skip": 0.1, "probes": 10}
        half: dict[str, Any] = {"tokens": 0.5, "layer": 2}
        starts: list[dict[str, Any]] = [{}, {**own, **half, "score": "largest"}, {**half, "score": "smallest"}]
        starts += [{**half, "tokens": 0.75, "score": "smallest"}, {"ffn": 0.2}, {"skip": 0.1, "probes": 10}]
        return [_SEEING | more for more in starts]
    plain = _DRAWING | {"solver": "euler"}
    paper: dict[str, Any] = {
        "tau": 0.3,
        "ffn": 0.2,
        "skip": 0.2,
        "probes": 10,
        "steps": 0.7,
        "cache": "head",
        "cache_interval": 5,
    }
    few: list[dict[str, Any]] = [
        {"steps": steps, "solver": solver} for steps in (0.4, 0.24, 0.16) for solver in ("euler", "adams")
    ]
    interval = {"guidance": "interval", "start": 0.0, "stop": 0.7, "steps": 0.32}
    guided = {"guidance": "adaptive", "low": 0.75, "switch": 0.3}
    return [plain | more for more in ({}, paper | guided, *few, interval)]
