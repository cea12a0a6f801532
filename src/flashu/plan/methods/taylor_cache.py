"""Extrapolated head features (TaylorSeer, Liu et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from flashu.errors import RecipeError
from flashu.plan import ModelSpec, Observations, Plan, Step, Task
from flashu.plan.methods.base import Method, in_window, require_interval, require_tau

MAX_ORDER = 2


@dataclass(frozen=True)
class TaylorCache(Method):
    """Run the flow head on every ``interval``-th forward; in between continue its features by their Taylor polynomial
    of ``order`` from finite differences. Order 0 is the head cache, as are the forwards before enough are known."""

    name: ClassVar[str] = "taylor_cache"
    tasks: ClassVar[frozenset[Task]] = frozenset({"generation"})
    fields: ClassVar[frozenset[str]] = frozenset({"features", "order"})

    task: Task = "generation"
    interval: int = 3
    order: int = 1
    tau: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_interval("the interval", self.interval)
        require_tau(self.tau)
        if not 0 <= self.order <= MAX_ORDER:
            raise RecipeError(f"the order is 0 to {MAX_ORDER}, not {self.order}")

    def edit(self, plan: Plan, step: Step, observed: Observations) -> Plan:
        if in_window(step, self.tau) and step.index % self.interval:
            return replace(plan, features="reuse", order=self.order)
        return plan

    def check(self, spec: ModelSpec) -> None:
        if not spec.keeps_features:
            raise RecipeError(f"this model ({spec.family}) draws without features that could be kept")
