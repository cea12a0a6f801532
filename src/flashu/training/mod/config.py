"""What is routed: the share of tokens that each layer keeps of each task, and how a router's word counts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from flashu.errors import FlashUError
from flashu.plan import Gate, GateScale, LayerPlan, ModelSpec, Route, Task
from flashu.plan.methods import UniMoD
from flashu.plan.recipe import Recipe

Sharing = Literal["task", "layer", "one", "none"]
Force = Literal["none", "text", "answers"]
TASK_OF: dict[Task, str] = {"generation": "t2i", "understanding": "mmu"}
"""Training task of each task of a request."""


@dataclass(frozen=True)
class UniMoDConfig:
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
    def from_dict(cls, data: Mapping[str, Any]) -> UniMoDConfig:
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
    def load(cls, path: str | Path) -> UniMoDConfig:
        return cls.from_dict(json.loads(Path(path).read_text()))


def _unknown(cls: type, data: Mapping[str, Any]) -> UniMoDConfig:
    known = [f.name for f in fields(cls)]
    raise FlashUError(
        f"unknown settings {sorted(set(data) - set(known))}; known are preset, layers, {', '.join(known)}"
    )


# -- schedules ---------------------------------------------------------------------------------------------------
def last_half(layers: int) -> list[int]:
    return list(range(layers - layers // 2, layers))


def level(layers: Sequence[int], keep: float) -> dict[int, float]:
    """The same share in each of the layers."""
    return dict.fromkeys(layers, keep)


def ramp(layers: Sequence[int], first: float = 1.0, last: float = 0.2) -> dict[int, float]:
    """Shares that fall linearly over the layers, both ends included."""
    fall, steps = first - last, max(len(layers) - 1, 1)
    return {layer: first - fall * n / steps for n, layer in enumerate(layers)}


def cosine(layers: Sequence[int], average: float) -> dict[int, float]:
    """p-MoD's shares: half a cosine around the average, each cut to (0, 1]."""
    steps = max(len(layers) - 1, 1)
    raw = (average + 0.5 * math.cos(math.pi * n / steps) for n in range(len(layers)))
    return {layer: min(1.0, max(0.01, share)) for layer, share in zip(layers, raw, strict=True)}


def ones_for(keep: Mapping[int, float], lengths: float, spec: ModelSpec) -> float:
    """FLOPs of a row of ``lengths`` tokens through the layers, as a share of all computed whole."""
    work = spec.attention.flops(int(lengths), int(lengths)) + spec.ffn(spec.neurons).flops(int(lengths))
    total = 0.0
    for layer in range(spec.layers):
        count = math.ceil(keep.get(layer, 1.0) * lengths)
        total += spec.attention.flops(count, count) + spec.ffn(spec.neurons).flops(count)
    return total / (spec.layers * work)


def matched(config: UniMoDConfig, cost: Callable[[UniMoDConfig], float], target: float) -> UniMoDConfig:
    """``config`` with every share of each task shrunk or grown alike, so that ``cost`` of it comes nearest to
    ``target``."""

    def moved(amount: float) -> UniMoDConfig:
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
def _mild_paper(layers: int) -> UniMoDConfig:
    half = last_half(layers)
    return UniMoDConfig({"t2i": level(half, 0.8), "mmu": ramp(half)})


def _strong_paper(layers: int) -> UniMoDConfig:
    half = last_half(layers)
    return UniMoDConfig({"t2i": level(half, 0.2), "mmu": level(half, 0.2)})


def _single_paper(layers: int) -> UniMoDConfig:
    half = last_half(layers)
    return UniMoDConfig({"t2i": ramp(half), "mmu": ramp(half)}, routers="layer")


def _gamma(layers: int) -> UniMoDConfig:
    routed = [i for i in range(layers) if i not in (0, 1, 2, layers - 1)]
    return UniMoDConfig({"t2i": level(routed, 0.5), "mmu": level(routed, 0.5)}, routers="one", force={"mmu": "answers"})


def _pmod(layers: int) -> UniMoDConfig:
    every = list(range(layers))
    shares = cosine(every, 0.5)
    return UniMoDConfig({"t2i": shares, "mmu": shares}, scale="tanh", gate="block", force={"mmu": "text"})


def _fewer(layers: int) -> UniMoDConfig:
    gone = tuple(range(layers - layers // 2, layers, 2))
    return UniMoDConfig(skip={"t2i": gone, "mmu": gone})


def _exit(layers: int) -> UniMoDConfig:
    gone = tuple(last_half(layers))
    return UniMoDConfig(skip={"t2i": gone, "mmu": gone})


PRESETS: dict[str, Callable[[int], UniMoDConfig]] = {
    "dense": lambda layers: UniMoDConfig(),
    "show-o-paper": _mild_paper,
    "emu3-paper": _strong_paper,
    "single-router-paper": _single_paper,
    "random": lambda layers: replace(_mild_paper(layers), routers="none", gate="none"),
    "gamma-mod": _gamma,
    "p-mod": _pmod,
    "fewer-layers": _fewer,
    "early-exit": _exit,
}
"""By name, for a model of so many layers. "show-o-paper": the last half, all T2I rows keep 0.8, MMU rows 1 down to 0.2;
"emu3-paper": the last half keeps 0.2 of both; "single-router-paper": one router a layer for both tasks, which keep what
MMU rows do; "fewer-layers": every second of the last half is left out; "early-exit": the last half is."""


def preset(name: str, layers: int) -> UniMoDConfig:
    """A preset for a model of ``layers`` layers; `FlashUError` for an unknown name."""
    if name not in PRESETS:
        raise FlashUError(f"there is no preset {name!r}: known are {', '.join(PRESETS)}")
    return PRESETS[name](layers)
