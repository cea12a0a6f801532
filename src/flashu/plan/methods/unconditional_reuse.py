"""Reuse of the unconditional branch (the idea of FasterCache, Lv et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from flashu.errors import RecipeError
from flashu.plan import ModelSpec, Observations, Plan, Step, Task
from flashu.plan.methods.base import Method, in_window, require_interval, require_tau


@dataclass(frozen=True)
class UnconditionalReuse(Method):
    """Compute the guidance branches on every ``interval``-th forward only; in between their distance to the
    main one is kept as it was. The last ``tau`` of the forwards compute both.

    FasterCache also reweighs the distance by frequency over the steps; this is the plain idea.
    """

    name: ClassVar[str] = "unconditional_reuse"
    tasks: ClassVar[frozenset[Task]] = frozenset({"generation"})
    fields: ClassVar[frozenset[str]] = frozenset({"reuse"})

    task: Task = "generation"
    interval: int = 5
    tau: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_interval("the interval", self.interval)
        require_tau(self.tau)

    def check(self, spec: ModelSpec) -> None:
        if spec.drawing == "autoregressive":
            raise RecipeError(f"this model ({spec.family}) draws token by token, which every branch has to take in")

    def edit(self, plan: Plan, step: Step, observed: Observations) -> Plan:
        if in_window(step, self.tau) and step.index % self.interval:
            return replace(plan, reuse=frozenset(plan.scales))
        return plan
