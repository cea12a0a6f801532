"""TaylorSeer (Liu et al. 2025) as released programs schedule it: a warm-up, then one forward in several."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from flashu.errors import RecipeError
from flashu.plan import ModelSpec, Observations, Plan, Step, Task
from flashu.plan.methods.base import Method, require_interval

MAX_ORDER = 6


@dataclass(frozen=True)
class TaylorSeer(Method):
    """The first ``warmup`` forwards run, then every ``interval``-th; in between the features follow by Taylor's series
    from finite differences up to ``order``, the first of which is taken in the last forward of the warm-up. The
    released program keeps them in every layer; only the last one's are ever used, and only those are kept here."""

    name: ClassVar[str] = "taylor_seer"
    tasks: ClassVar[frozenset[Task]] = frozenset({"generation"})
    fields: ClassVar[frozenset[str]] = frozenset({"features", "differences"})

    task: Task = "generation"
    interval: int = 3
    order: int = 6
    warmup: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        require_interval("the interval", self.interval)
        require_interval("the warm-up", self.warmup)
        if not 0 <= self.order <= MAX_ORDER:
            raise RecipeError(f"the order is 0 to {MAX_ORDER}, not {self.order}")

    def edit(self, plan: Plan, step: Step, observed: Observations) -> Plan:
        after = step.index - (self.warmup - 1)
        runs = after <= 0 or after % self.interval == 0
        return replace(plan, features="run" if runs else "reuse", differences=self.order if after >= 0 else 0)

    def check(self, spec: ModelSpec) -> None:
        if not spec.keeps_features:
            raise RecipeError(f"this model ({spec.family}) draws without features that could be kept")
