"""What a method is: a frozen value with one pure function that edits its own fields of the plan."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, ClassVar

from flashu.errors import RecipeError
from flashu.plan import ModelSpec, Observations, Plan, Side, Step, Task, share

KINDS: dict[str, tuple[type, str]] = {
    "int": (Integral, "a whole number"),
    "float": (Real, "a finite number"),
    "bool": (bool, "true or false"),
    "str": (str, "a string"),
}
"""What a setting must be, by its annotation."""


@dataclass(frozen=True)
class Method:
    """Base of all methods. A subclass is a frozen dataclass in its own file.

    ``fields``: the plan fields it alone may write, so methods commute; "forwards" is the number of forwards.
    ``reads``: observations it decides by, which a run would not make otherwise. ``task``: the task it is for.
    """

    name: ClassVar[str]
    tasks: ClassVar[frozenset[Task]]
    fields: ClassVar[frozenset[str]]
    reads: ClassVar[frozenset[str]] = frozenset()

    task: Task

    def __post_init__(self) -> None:
        if self.task not in self.tasks:
            raise RecipeError(f"{self.name} does not exist for {self.task}; it is for {', '.join(sorted(self.tasks))}")
        for field in dataclasses.fields(self):
            expected, value = KINDS.get(str(field.type)), getattr(self, field.name)
            if expected is not None and (
                not isinstance(value, expected[0])
                or (isinstance(value, bool) and expected[0] is not bool)
                or (isinstance(value, Real) and not math.isfinite(value))
            ):
                raise RecipeError(f"{self.name}: {field.name} must be {expected[1]}, got {value!r}")

    @property
    def writes(self) -> frozenset[str]:
        """The fields these settings write."""
        return self.fields

    def edit(self, plan: Plan, step: Step, observed: Observations) -> Plan:
        """The plan with this method's fields written. Pure."""
        raise TypeError(f"{type(self).__name__} must define edit")

    def check(self, spec: ModelSpec) -> None:
        """Raise `RecipeError` when the model lacks what this method works on."""

    def resolved(self, side: Side) -> Method:
        """This method with anything left to calibration settled; ``side`` is the pruning side measured."""
        return self

    def forwards(self, base: int) -> int:
        """How many forwards a generation takes that would take ``base`` without this method."""
        return base

    def to_dict(self) -> dict[str, Any]:
        return {"method": self.name} | {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}


def in_window(step: Step, tau: float) -> bool:
    """True before the last ``tau`` (count or fraction) of the forwards, which run the full network (Eq. 4)."""
    return step.index < step.total - share(tau, step.total)


def require_ratio(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise RecipeError(f"{name} must be in [0, 1), got {value}")


def require_interval(name: str, value: int) -> None:
    if value < 1:
        raise RecipeError(f"{name} must be at least 1, got {value}")


def require_tau(value: float) -> None:
    if value < 0:
        raise RecipeError(f"tau must be a fraction below 1 or a count of forwards, got {value}")
