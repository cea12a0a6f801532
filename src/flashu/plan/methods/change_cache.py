"""Reuse while little has changed (the idea of TeaCache, Liu et al. 2024, and of first-block caches)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from flashu.errors import RecipeError
from flashu.plan import ModelSpec, Observations, Plan, Step, Task
from flashu.plan.methods.base import Method, in_window, require_tau


@dataclass(frozen=True)
class ChangeCache(Method):
    """Reuse the head features until the latents have moved by ``threshold`` (mean |z - z'| / mean |z'|) since they were
    computed. The last ``tau`` of the forwards reuse nothing.

    TeaCache measures the modulated input and corrects it by a polynomial fitted to each model; here the latents
    themselves are the measure and nothing is fitted. The change is the batch's mean.
    """

    name: ClassVar[str] = "change_cache"
    tasks: ClassVar[frozenset[Task]] = frozenset({"generation"})
    fields: ClassVar[frozenset[str]] = frozenset({"features"})
    reads: ClassVar[frozenset[str]] = frozenset({"drift"})

    task: Task = "generation"
    threshold: float = 0.1
    tau: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_tau(self.tau)
        if self.threshold < 0:
            raise RecipeError(f"the threshold must not be negative, got {self.threshold}")

    def edit(self, plan: Plan, step: Step, observed: Observations) -> Plan:
        if in_window(step, self.tau) and observed.drift is not None and observed.drift < self.threshold:
            return replace(plan, features="reuse")
        return plan

    def check(self, spec: ModelSpec) -> None:
        if spec.drawing != "flow":
            raise RecipeError(f"this model ({spec.family}) has no latents whose change could be measured")
