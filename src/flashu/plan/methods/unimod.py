"""Layers that only some tokens run, chosen by a router of each task and layer (UniMoD, arXiv 2502.06474)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

from flashu.errors import RecipeError
from flashu.plan import TASKS, Gate, GateScale, ModelSpec, Observations, Plan, Route, Step, Task
from flashu.plan.methods.base import Method


@dataclass(frozen=True)
class UniMoD(Method):
    """Each of the layers in ``keep`` (by number, the share of tokens that run it) computes its best tokens alone.

    The trained routers are given to the engine; ``router``: their name, with "{layer}" for the layer's number; None =
    random tokens. ``force``: tokens that run whatever their router says, "text" = all but the image's, "answers" =
    those that are decoded. A token decoded on its own runs a layer if its probability there is at least ``threshold``
    (None: always). ``gate``, ``scale``: see `Route`.

    The tokens of an image block compete among themselves for what the tokens before it have left of their common share.
    """

    name: ClassVar[str] = "unimod"
    tasks: ClassVar[frozenset[Task]] = frozenset(TASKS)
    fields: ClassVar[frozenset[str]] = frozenset({"layers.routes"})

    keep: tuple[tuple[int, float], ...] = ()
    router: str | None = None
    gate: Gate = "ffn"
    scale: GateScale = "p"
    force: Literal["none", "text", "answers"] = "none"
    threshold: float | None = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "keep", tuple((int(layer), float(share)) for layer, share in self.keep))
        layers = [layer for layer, _ in self.keep]
        if len(set(layers)) != len(layers) or min(layers, default=0) < 0:
            raise RecipeError(f"each layer is routed once, by its number from 0 on, not {layers}")
        for layer, share in self.keep:
            if not math.isfinite(share) or not 0 < share <= 1:
                raise RecipeError(
                    f"the share of tokens that run layer {layer} must be above 0 and at most 1, not {share}"
                )
        for value, known in ((self.gate, Gate), (self.scale, GateScale)):
            if value not in get_args(known):
                raise RecipeError(f"a gate is one of {', '.join(get_args(known))}, not {value!r}")
        if self.router is not None and not isinstance(self.router, str):
            raise RecipeError(f"router must be the name of routers, not {self.router!r}")
        if self.threshold is not None and not (isinstance(self.threshold, int | float) and 0 <= self.threshold <= 1):
            raise RecipeError(f"threshold must be a probability, not {self.threshold!r}")
        if self.force not in ("none", "text", "answers"):
            raise RecipeError(f"force must be none, text or answers, not {self.force!r}")

    def edit(self, plan: Plan, step: Step, observed: Observations) -> Plan:
        answering = step.kind == "token" and step.task == "understanding" and self.force != "none"
        routes = tuple(
            Route(
                layer,
                mode="bypass",
                keep=share,
                router=None if self.router is None else self.router.format(layer=layer),
                force="text" if self.force == "text" else "none",
                threshold=None if answering else self.threshold,
                gate=self.gate,
                scale=self.scale,
            )
            for layer, share in self.keep
        )
        return replace(plan, layers=replace(plan.layers, routes=(*plan.layers.routes, *routes)))

    def check(self, spec: ModelSpec) -> None:
        if beyond := [layer for layer, _ in self.keep if layer >= spec.layers]:
            raise RecipeError(f"there is no layer {beyond[0]} to route: this model ({spec.family}) has {spec.layers}")
