"""Task-specific FFN pruning and the Hybrid FFN (paper section 3.3.1, Eqs. 2-5)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from flashu.plan import TASKS, Observations, Plan, Step, Task
from flashu.plan.methods.base import Method, in_window, require_ratio, require_tau


@dataclass(frozen=True)
class FFNPrune(Method):
    """Run the FFN with the neurons of lowest Wanda score removed, except in the last ``tau`` of the forwards.

    ``ratio`` r_p: share of neurons removed in every layer. ``tau``: count (>= 1) or fraction of the forwards that run
    the full FFN at the end (Hybrid FFN, Eq. 4). ``bank``: name of the mask; "" = the one calibrated for this task.
    """

    name: ClassVar[str] = "ffn_prune"
    tasks: ClassVar[frozenset[Task]] = frozenset(TASKS)
    fields: ClassVar[frozenset[str]] = frozenset({"layers.ffn"})

    ratio: float = 0.20
    tau: float = 0.3
    bank: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_ratio("r_p", self.ratio)
        require_tau(self.tau)

    @property
    def mask(self) -> str:
        return self.bank or self.task

    def edit(self, plan: Plan, step: Step, observed: Observations) -> Plan:
        if not in_window(step, self.tau) or self.ratio == 0:
            return plan
        return replace(plan, layers=replace(plan.layers, ffn=self.mask))
