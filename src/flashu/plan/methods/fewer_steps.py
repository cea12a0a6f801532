"""Fewer forwards and nothing else: what every other method has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from flashu.errors import RecipeError
from flashu.plan import ModelSpec, Observations, Plan, Step, Task, share
from flashu.plan.methods.base import Method


@dataclass(frozen=True)
class FewerSteps(Method):
    """``steps`` forwards (>= 1), or that fraction of the request's."""

    name: ClassVar[str] = "fewer_steps"
    tasks: ClassVar[frozenset[Task]] = frozenset({"generation"})
    fields: ClassVar[frozenset[str]] = frozenset({"forwards"})

    task: Task = "generation"
    steps: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps <= 0:
            raise RecipeError(f"steps must be a fraction below 1 or a count, got {self.steps}")

    def edit(self, plan: Plan, step: Step, observed: Observations) -> Plan:
        return plan

    def check(self, spec: ModelSpec) -> None:
        if spec.drawing == "autoregressive":
            raise RecipeError(f"this model ({spec.family}) draws one token per forward: it cannot take fewer")

    def forwards(self, base: int) -> int:
        return max(1, share(self.steps, base))
