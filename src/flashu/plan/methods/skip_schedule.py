"""A fixed list of forwards that run, found offline: the idea of schedules such as TACache's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from flashu.errors import RecipeError
from flashu.plan import ModelSpec, Observations, Plan, Step, Task
from flashu.plan.methods.base import Method


@dataclass(frozen=True)
class SkipSchedule(Method):
    """Of ``total`` forwards those in ``runs`` (from 0 on) compute features; each other one takes the latest as they
    are. `inference.calibrate.schedule.searched` finds a list for a model. A drawing of another number of forwards runs
    those nearest to the list's, in proportion."""

    name: ClassVar[str] = "skip_schedule"
    tasks: ClassVar[frozenset[Task]] = frozenset({"generation"})
    fields: ClassVar[frozenset[str]] = frozenset({"features"})

    task: Task = "generation"
    total: int = 49
    runs: tuple[int, ...] = (0, 1, 2, 3, 5, 7, 10, 13, 17, 21, 26, 31, 36, 40, 43, 46, 48)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "runs", tuple(int(n) for n in self.runs))
        if not self.runs or self.runs[0] != 0 or list(self.runs) != sorted(set(self.runs)):
            raise RecipeError("the forwards that run are listed in order, once each, the first one being 0")
        if self.runs[-1] >= self.total:
            raise RecipeError(f"forward {self.runs[-1]} is none of {self.total}: they count from 0")

    def edit(self, plan: Plan, step: Step, observed: Observations) -> Plan:
        there = {round(n * (step.total - 1) / max(self.total - 1, 1)) for n in self.runs}
        return plan if step.index in there else replace(plan, features="reuse")

    def check(self, spec: ModelSpec) -> None:
        if not spec.keeps_features:
            raise RecipeError(f"this model ({spec.family}) draws without features that could be kept")
