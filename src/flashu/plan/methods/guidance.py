"""Adaptive guidance: a rising guidance scale that needs fewer steps (paper section 3.4.1, Eq. 8)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate
from typing import ClassVar

from flashu.errors import RecipeError
from flashu.plan import ModelSpec, Observations, Plan, Step, Task, share
from flashu.plan.methods.base import Method, require_tau


@dataclass(frozen=True)
class AdaptiveGuidance(Method):
    """Low guidance while noise is high, full guidance at the end; ``steps`` of the forwards suffice.

    Without ``schedule``: scale low * s0, then s0 in the last ``switch`` (t_switch, count or fraction) of the forwards,
    where s0 is the request's guidance (Eq. 8, Table 7). With ``schedule`` ((forwards, scale), ...): those scales, the
    last one holding on, of the first guidance branch; give ``steps`` the schedule's sum, as `FlashUConfig` does.
    ``steps``: number of forwards (>= 1) or fraction of the request's (T = 0.7 T0); 0 = as requested.
    """

    name: ClassVar[str] = "adaptive_guidance"
    tasks: ClassVar[frozenset[Task]] = frozenset({"generation"})
    fields: ClassVar[frozenset[str]] = frozenset({"scales"})

    task: Task = "generation"
    low: float = 0.75
    switch: float = 0.3
    schedule: tuple[tuple[int, float], ...] = ()
    steps: float = 0.7

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "schedule", tuple((int(n), float(s)) for n, s in self.schedule))
        require_tau(self.switch)
        if self.low < 0 or any(scale < 0 for _, scale in self.schedule):
            raise RecipeError("guidance scales must not be negative")
        if any(count < 1 for count, _ in self.schedule):
            raise RecipeError("every phase of the guidance schedule needs at least one forward")
        if self.steps < 0:
            raise RecipeError(f"steps must be 0, a fraction below 1 or a count, got {self.steps}")

    def edit(self, plan: Plan, step: Step, observed: Observations) -> Plan:
        if not plan.scales:
            return plan
        if not self.schedule:
            late = step.index >= step.total - share(self.switch, step.total)
            low = {name: self.low * scale for name, scale in plan.scales.items()}
            return plan if late else replace(plan, scales=low)
        ends = accumulate(count for count, _ in self.schedule)
        scales = (scale for _, scale in self.schedule)
        scale = next((s for end, s in zip(ends, scales, strict=True) if step.index < end), self.schedule[-1][1])
        return replace(plan, scales={**plan.scales, next(iter(plan.scales)): scale})

    @property
    def writes(self) -> frozenset[str]:
        return self.fields | {"forwards"} if self.steps else self.fields

    def check(self, spec: ModelSpec) -> None:
        if self.steps and spec.drawing == "autoregressive":
            raise RecipeError(f"this model ({spec.family}) draws one token per forward: give AdaptiveGuidance steps=0")

    def forwards(self, base: int) -> int:
        if self.steps == 0:
            return base
        return max(1, share(self.steps, base)) if self.steps < 1 else int(self.steps)
