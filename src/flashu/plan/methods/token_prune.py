"""Visual token pruning by the V-norm proxy (paper section 3.5.1)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

from flashu.errors import RecipeError
from flashu.plan import ModelSpec, Observations, Plan, Route, Score, Side, Step, Task
from flashu.plan.methods.base import Method, require_ratio


@dataclass(frozen=True)
class TokenPrune(Method):
    """After layer ``layer`` (counted from 1) drop the ``ratio`` of visual tokens with the largest value norms.

    Kept tokens keep their positions, and later layers' caches hold only them. ``side``: "largest" as the paper drops
    (its premise: norm and attention are negatively correlated), "smallest", or "calibrated": the side that the
    correlation measured on this model calls for; `resolved` settles it before a run. ``score``: what else to prune by,
    for comparison (``seed``: of a random score).
    """

    name: ClassVar[str] = "token_prune"
    tasks: ClassVar[frozenset[Task]] = frozenset({"understanding"})
    fields: ClassVar[frozenset[str]] = frozenset({"layers.routes"})

    task: Task = "understanding"
    layer: int = 2
    ratio: float = 0.50
    side: Literal["largest", "smallest", "calibrated"] = "largest"
    score: Score = "value_norm"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_ratio("token pruning ratio", self.ratio)
        if self.side not in ("largest", "smallest", "calibrated"):
            raise RecipeError(f"side must be largest, smallest or calibrated, not {self.side!r}")
        if self.score not in get_args(Score):
            raise RecipeError(f"tokens are scored by {', '.join(get_args(Score))}, not by {self.score!r}")
        if self.side == "calibrated" and self.score != "value_norm":
            raise RecipeError("only value norms have a calibrated side: say largest or smallest")
        if self.layer < 1:
            raise RecipeError(f"tokens can be pruned after layer 1 at the earliest, not after {self.layer}")

    def edit(self, plan: Plan, step: Step, observed: Observations) -> Plan:
        if step.kind != "prefill" or self.ratio == 0:
            return plan
        if self.side == "calibrated":
            raise RecipeError("token pruning side 'calibrated' needs a calibrated model: run `flashu calibrate`")
        route = Route(self.layer, self.ratio, self.score, self.side, self.seed)
        return replace(plan, layers=replace(plan.layers, routes=(*plan.layers.routes, route)))

    def resolved(self, side: Side) -> TokenPrune:
        return replace(self, side=side) if self.side == "calibrated" else self

    def check(self, spec: ModelSpec) -> None:
        if self.layer >= spec.layers:
            raise RecipeError(
                f"cannot prune tokens after layer {self.layer}: this model ({spec.family}) has {spec.layers} layers"
            )
