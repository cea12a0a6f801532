"""What is routed: the share of tokens that each layer keeps of each task, and how a router's word counts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from flashu.errors import FlashUError
from flashu.models.registry import families
from flashu.plan import Gate, GateScale, LayerPlan, ModelSpec, Route, Task
from flashu.plan.methods import UniMoD
from flashu.plan.recipe import Recipe
from flashu.plan.schedules import cosine, last_half, level, ramp

Sharing = Literal["task", "layer", "one", "none"]
Force = Literal["none", "text", "answers"]
TASK_OF: dict[Task, str] = {"generation": "t2i", "understanding": "mmu"}
"""Training task of each task of a request."""


@dataclass(frozen=True)
class UniModConfig:
    """``keep``: of each task, the share of a row's tokens that run each routed layer; tasks that are not in it are
    computed whole. ``routers``: one for each "task" and layer, one for each "layer", "one" for all, or "none" = random
    tokens. ``gate``, ``scale``: what the router's weight multiplies, and how large it is (`Route`). ``force``: by task,
    tokens that come first: "answers" = those whose prediction is learnt, "text" = all but the image's.
    ``auxiliary``: weight of the routers' own loss. ``threshold``: probability from which a decoded token runs a layer
    (None = always). ``padding``: whether a row's length, of which the share is, counts its padding. ``skip``: layers
    that a task leaves out.
    """

    keep: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    routers: Sharing = "task"
    gate: Gate = "ffn"
    scale: GateScale = "p"
    force: Mapping[str, Force] = field(default_factory=dict)
    auxiliary: float = 0.01
    threshold: float | None = 0.5
    padding: bool = True
    skip: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        keep = {task: {int(i): float(v) for i, v in layers.items()} for task, layers in self.keep.items()}
        object.__setattr__(self, "keep", keep)
        object.__setattr__(self, "skip", {task: tuple(int(i) for i in own) for task, own in self.skip.items()})
        object.__setattr__(self, "force", dict(self.force))
        for task, layers in keep.items():
            for layer, share in layers.items():
                if not math.isfinite(share) or not 0 < share <= 1:
                    raise FlashUError(
                        f"task {task!r}, layer {layer}: the share of tokens to keep must be above 0 and at most 1, got "
                        f"{share}; to leave a layer out, put it in skip"
                    )
                if layer in self.skip.get(task, ()):
                    raise FlashUError(f"task {task!r}: layer {layer} is both routed and skipped: choose one")
        known = (("routers", Sharing), ("gate", Gate), ("scale", GateScale))
        for name, values in known:
            if getattr(self, name) not in get_args(values):
                raise FlashUError(f"{name} must be one of {', '.join(get_args(values))}, not {getattr(self, name)!r}")
        for task, force in self.force.items():
            if force not in get_args(Force):
                raise FlashUError(f"force of {task!r} must be one of {', '.join(get_args(Force))}, not {force!r}")
        if self.auxiliary < 0 or not math.isfinite(self.auxiliary):
            raise FlashUError(f"the auxiliary loss has a weight of at least 0, not {self.auxiliary}")

    # -- what follows from it ----------------------------------------------------------------------------------
    def router(self, task: str, layer: int | str) -> str | None:
        """The name of a router; ``layer`` may be a placeholder."""
        return {"task": f"{task}_{layer}", "layer": f"layer_{layer}", "one": "one", "none": None}[self.routers]

    def names(self) -> list[str]:
        """The names of all routers: task by task, layers ascending."""
        found = [self.router(task, layer) for task, layers in self.keep.items() for layer in sorted(layers)]
        return list(dict.fromkeys(name for name in found if name is not None))

    def plan(self, task: str) -> LayerPlan:
        """The layer plan of a task's rows."""
        routes = tuple(
            Route(
                layer,
                mode="bypass",
                keep=share,
                router=self.router(task, layer),
                threshold=self.threshold,
                gate=self.gate,
                scale=self.scale,
            )
            for layer, share in sorted(self.keep.get(task, {}).items())
        )
        return LayerPlan(frozenset(self.skip.get(task, ())), routes=routes)

    def recipe(self) -> Recipe:
        """The recipe that a trained model draws and answers under."""
        if any(self.skip.values()):
            raise FlashUError("layers that a task leaves out have no recipe yet: only routed ones are drawn with")
        methods = tuple(
            UniMoD(
                of,
                tuple(sorted(self.keep[task].items())),
                self.router(task, "{layer}"),
                self.gate,
                self.scale,
                self.force.get(task, "none"),
                self.threshold,
            )
            for of, task in TASK_OF.items()
            if self.keep.get(task)
        )
        return Recipe(methods, "unimod")

    def check(self, spec: ModelSpec) -> None:
        """`FlashUError` unless the model has the layers."""
        for where in (self.keep, self.skip):
            for task, layers in where.items():
                for layer in layers:
                    if not 0 <= layer < spec.layers:
                        raise FlashUError(
                            f"task {task!r} routes or skips layer {layer}, but this model ({spec.family}) has layers 0 "
                            f"to {spec.layers - 1}"
                        )

    def layer_kinds(self, spec: ModelSpec) -> dict[int, str]:
        """Of each routed layer: "shared" where every task's rows are routed, else the task alone."""
        kinds = {}
        for layer in range(spec.layers):
            tasks = [task for task, layers in self.keep.items() if layer in layers]
            if tasks:
                kinds[layer] = "shared" if len(tasks) > 1 else tasks[0]
        return kinds

    # -- files -------------------------------------------------------------------------------------------------
    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> UniModConfig:
        """Inverse of `to_dict`; ``preset`` with ``layers`` stands for a preset that the other keys change."""
        data = dict(data)
        if (name := data.pop("preset", None)) is not None:
            layers = data.pop("layers", None)
            if layers is None:
                raise FlashUError(f"preset {name!r} needs the number of layers: give layers beside it")
            base = preset(name, int(layers))
            return replace(base, **data) if not set(data) - {f.name for f in fields(cls)} else _unknown(cls, data)
        if set(data) - {f.name for f in fields(cls)}:
            return _unknown(cls, data)
        return cls(**data)

    @classmethod
    def load(cls, path: str | Path) -> UniModConfig:
        return cls.from_dict(json.loads(Path(path).read_text()))


def _unknown(cls: type, data: Mapping[str, Any]) -> UniModConfig:
    known = [f.name for f in fields(cls)]
    raise FlashUError(
        f"unknown settings {sorted(set(data) - set(known))}; known are preset, layers, {', '.join(known)}"
    )


def matched(config: UniModConfig, cost: Callable[[UniModConfig], float], target: float) -> UniModConfig:
    """``config`` with every share of each task shrunk or grown alike, so that ``cost`` of it comes nearest to
    ``target``."""

    def moved(amount: float) -> UniModConfig:
        shares = {
            task: {i: min(1.0, max(0.01, v + amount)) for i, v in own.items()} for task, own in config.keep.items()
        }
        return replace(config, keep=shares)

    low, high = -1.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(moved(middle)) < target else (low, middle)
    return moved((low + high) / 2)


# -- presets -----------------------------------------------------------------------------------------------------
def _both(schedule: Mapping[int, float], **settings: Any) -> UniModConfig:
    return UniModConfig({"t2i": schedule, "mmu": schedule}, **settings)


def _without(layers: Sequence[int]) -> UniModConfig:
    return UniModConfig(skip={"t2i": tuple(layers), "mmu": tuple(layers)})


def _gamma(layers: int) -> UniModConfig:
    routed = [i for i in range(layers) if i not in (0, 1, 2, layers - 1)]
    return _both(level(routed, 0.5), routers="one", force={"mmu": "answers"})


PRESETS: dict[str, Callable[[int], UniModConfig]] = {
    "dense": lambda layers: UniModConfig(),
    "single-router-paper": lambda layers: _both(ramp(last_half(layers)), routers="layer"),
    "gamma-mod": _gamma,
    "p-mod": lambda layers: _both(cosine(range(layers), 0.5), scale="tanh", gate="block", force={"mmu": "text"}),
    "fewer-layers": lambda layers: _without(range(layers - layers // 2, layers, 2)),
    "early-exit": lambda layers: _without(last_half(layers)),
}
"""By name, for a model of so many layers; the published schedules are the families'. "single-router-paper": one router
a layer for both tasks, which keep 1 down to 0.2 in the last half; "fewer-layers": every second of the last half is left
out; "early-exit": the last half is."""


def preset(name: str, layers: int) -> UniModConfig:
    """A preset for a model of ``layers`` layers; `FlashUError` for an unknown name."""
    if name in PRESETS:
        return PRESETS[name](layers)
    published = {key: make for family in families() for key, make in family.routings.items()}
    if name not in published:
        raise FlashUError(f"there is no preset {name!r}: known are {', '.join([*PRESETS, *published])}")
    return UniModConfig(published[name](layers))


def randomly(config: UniModConfig) -> UniModConfig:
    """The same shares of random tokens."""
    return replace(config, routers="none", gate="none")
