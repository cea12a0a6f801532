"""Reuse of the unconditional branch (the idea of FasterCache, Lv et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from flashu.plan import Plan, Seen, Step, Task
from flashu.plan.methods.base import Method, in_window, require_interval, require_tau


@dataclass(frozen=True)
class UnconditionalReuse(Method):
    """Compute the unconditional branch on every ``interval``-th forward only; in between its distance to the
    conditional one is kept as it was. The last ``tau`` of the forwards compute both.

    FasterCache also reweighs the distance by frequency over the steps; this is the plain idea.
    """

    name: ClassVar[str] = "unconditional_reuse"
    tasks: ClassVar[frozenset[Task]] = frozenset({"generation"})
    writes: ClassVar[frozenset[str]] = frozenset({"unconditional"})

    task: Task = "generation"
    interval: int = 5
    tau: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_interval("the interval", self.interval)
        require_tau(self.tau)

    def edit(self, plan: Plan, step: Step, seen: Seen) -> Plan:
        if in_window(step, self.tau) and step.index % self.interval:
            return replace(plan, unconditional="reuse")
        return plan
