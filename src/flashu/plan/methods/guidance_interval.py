"""Guidance in an interval only (Kynkaanniemi et al. 2024): outside it there is no unconditional branch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from flashu.errors import RecipeError
from flashu.plan import ModelSpec, Observations, Plan, Step, Task
from flashu.plan.methods.base import Method


@dataclass(frozen=True)
class GuidanceInterval(Method):
    """Guides from the ``start`` to the ``stop`` fraction of the forwards; draws with the prompt alone else."""

    name: ClassVar[str] = "guidance_interval"
    tasks: ClassVar[frozenset[Task]] = frozenset({"generation"})
    fields: ClassVar[frozenset[str]] = frozenset({"scales"})

    task: Task = "generation"
    start: float = 0.0
    stop: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.start < self.stop <= 1:
            raise RecipeError(
                f"guidance runs from start to stop, 0 <= start < stop <= 1, not {self.start}, {self.stop}"
            )

    def check(self, spec: ModelSpec) -> None:
        if self.start and spec.drawing == "autoregressive":
            raise RecipeError(f"this model ({spec.family}) draws token by token: its guidance begins with the first")

    def edit(self, plan: Plan, step: Step, observed: Observations) -> Plan:
        # In the middle of the forward, so that halves of an odd number are as even as can be.
        at = (step.index + 0.5) / step.total
        return plan if self.start <= at < self.stop else replace(plan, scales={})
