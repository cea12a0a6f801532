"""Diffusion-head cache (paper section 3.4.2)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from flashu.errors import RecipeError
from flashu.plan import ModelSpec, Observations, Plan, Step, Task
from flashu.plan.methods.base import Method, in_window, require_interval, require_tau


@dataclass(frozen=True)
class HeadCache(Method):
    """Run the flow head's blocks on every ``interval``-th forward (T_cache) and reuse their output in between.

    The velocity then depends on the kept features and t alone, so a reuse forward computes nothing upstream.
    ``first``: number of the first forward, 0 by default; 1 as in the released program, whose forwards before the
    first multiple all run. The last ``tau`` of the forwards reuse nothing.
    """

    name: ClassVar[str] = "head_cache"
    tasks: ClassVar[frozenset[Task]] = frozenset({"generation"})
    fields: ClassVar[frozenset[str]] = frozenset({"features"})

    task: Task = "generation"
    interval: int = 5
    tau: float = 0.3
    first: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_interval("T_cache", self.interval)
        require_tau(self.tau)
        if self.first not in (0, 1):
            raise RecipeError(f"forwards are numbered from 0 or 1, not {self.first}")

    def edit(self, plan: Plan, step: Step, observed: Observations) -> Plan:
        past, number = divmod(step.index + self.first, self.interval)
        kept = past * self.interval >= self.first
        if in_window(step, self.tau) and number and kept:
            return replace(plan, features="reuse")
        return plan

    def check(self, spec: ModelSpec) -> None:
        if spec.drawing != "flow":
            raise RecipeError(f"this model ({spec.family}) has no flow head to cache")
