"""The search space, all of it: which methods a recipe may hold and with which settings."""

from __future__ import annotations

from collections.abc import Callable
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
DROP = {
    "largest": ("value_norm", "largest"),
    "smallest": ("value_norm", "smallest"),
    "key_norm": ("key_norm", "smallest"),
    "attention": ("attention", "smallest"),
    "duplication": ("duplication", "largest"),
}
"""Which visual tokens go: by a score, on a side."""
SPACE: dict[str, tuple[Any, ...]] = {
    "tau": (0.0, 0.1, 0.2, 0.3),  # the window of full forwards at the end, one for all methods as in the paper
    "ffn": (0.0, 0.1, 0.2, 0.3, 0.4),
    "skip": (0.0, 0.1, 0.2, 0.3),
    "probes": (5, 10),
    "steps": (1.0, 0.8, 0.7, 0.6, 0.5, 0.4, 0.32, 0.24, 0.2, 0.16, 0.12),
    "guidance": (OFF, "adaptive", "interval"),
    "low": (0.5, 0.75, 0.9),
    "switch": (0.2, 0.3, 0.5),
    "start": (0.0, 0.1, 0.2),
    "stop": (0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    "unconditional": (1, 2, 3, 5),  # interval; 1: computed every time
    "cache": (OFF, "head", "taylor", "change"),
    "cache_interval": (2, 3, 4, 5),
    "order": (1, 2),
    "threshold": (0.02, 0.05, 0.1, 0.15),
    "solver": tuple(SOLVERS),
    "tokens": (0.0, 0.25, 0.5, 0.625, 0.75, 0.875),
    "score": tuple(DROP),
    "layer": (1, 2, 3, 4),
}
"""The values of every setting."""


class Choices(Protocol):
    """A trial (Optuna's), or anything else that chooses."""

    def suggest_categorical(self, name: str, choices: Any) -> Any: ...


def draft(choose: Choices, task: Task, layers: int) -> Recipe:
    """The recipe a trial stands for, on a model of so many layers. Settings of methods left out are not chosen."""

    def pick(name: str) -> Any:
        values = SPACE[name]
        return choose.suggest_categorical(name, tuple(v for v in values if v < layers) if name == "layer" else values)

    methods: list[Method] = []
    tau = pick("tau")
    if ratio := pick("ffn"):
        methods.append(FFNPrune(task, ratio, tau))
    if ratio := pick("skip"):
        methods.append(LayerSkip(task, ratio, pick("probes"), tau))
    if task == "generation":
        methods += _drawing(pick, tau)
        return Recipe(tuple(methods), "tuned", solver=pick("solver"))
    if ratio := pick("tokens"):
        score, side = DROP[pick("score")]
        methods.append(TokenPrune(layer=pick("layer"), ratio=ratio, side=side, score=score))  # type: ignore[arg-type]
    return Recipe(tuple(methods), "tuned")


def _drawing(pick: Callable[[str], Any], tau: float) -> list[Method]:
    """What only generation may hold."""
    methods: list[Method] = []
    steps = pick("steps")
    if steps < 1:
        methods.append(FewerSteps(steps=steps))
    guidance = pick("guidance")
    if guidance == "adaptive":
        methods.append(AdaptiveGuidance(low=pick("low"), switch=pick("switch"), steps=0, task="generation"))
    if guidance == "interval":
        methods.append(GuidanceInterval(start=pick("start"), stop=pick("stop")))
    every = pick("unconditional")
    if every > 1:
        methods.append(UnconditionalReuse(interval=every, tau=tau))
    cache = pick("cache")
    if cache == "head":
        methods.append(HeadCache(interval=pick("cache_interval"), tau=tau))
    if cache == "taylor":
        methods.append(TaylorCache(interval=pick("cache_interval"), order=pick("order"), tau=tau))
    if cache == "change":
        methods.append(ChangeCache(threshold=pick("threshold"), tau=tau))
    return methods


def known(task: Task) -> list[dict[str, Any]]:
    """Where a search begins: the full model, the paper's settings, and what is simplest."""
    starts: list[dict[str, Any]]
    full: dict[str, Any] = {"tau": 0.0, "ffn": 0.0, "skip": 0.0}
    if task == "understanding":
        full |= {"tokens": 0.0}
        half: dict[str, Any] = {"tokens": 0.5, "layer": 2}
        paper = {"tau": 0.3, "ffn": 0.1, "skip": 0.1, "probes": 10, **half, "score": "largest"}
        fewer = [{**half, "tokens": ratio, "score": "smallest"} for ratio in (0.5, 0.75)]
        starts = [{}, paper, *fewer, {"ffn": 0.2}, {"skip": 0.1, "probes": 10}]
    else:
        full |= {"steps": 1.0, "guidance": OFF, "unconditional": 1, "cache": OFF, "solver": "euler"}
        guided = {"guidance": "adaptive", "low": 0.75, "switch": 0.3, "steps": 0.7}
        paper = {"tau": 0.3, "ffn": 0.2, "skip": 0.2, "probes": 10, **guided, "cache": "head", "cache_interval": 5}
        few = [{"steps": steps, "solver": solver} for steps in (0.4, 0.24, 0.16) for solver in ("euler", "adams")]
        starts = [{}, paper, *few, {"guidance": "interval", "start": 0.0, "stop": 0.7, "steps": 0.32}]
    return [full | start for start in starts]
