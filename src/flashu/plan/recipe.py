"""A recipe: the methods of a run, folded into one plan per forward."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, replace
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any

from flashu.errors import RecipeError
from flashu.plan.methods import METHODS, FFNPrune, Method, TokenPrune
from flashu.plan.plan import SOLVERS, TASKS, Observations, Plan, Side, Step, Task
from flashu.plan.spec import ModelSpec


@dataclass(frozen=True)
class Recipe:
    """Methods for both tasks. Each plan field has one writer per task, so the order of methods does not matter.

    ``padded``: compute whole rows padded to full length every forward, as the original program does, instead of the
    prompt once and the image block. ``reference``: reproduce the released FlashU program rather than the paper: padded
    rows, as many time points as steps (one forward fewer), calibration on text embeddings, one layer-skipping list for
    a whole batch. ``solver``: how velocities become latents (`inference.samplers.solvers`).
    """

    methods: tuple[Method, ...] = ()
    name: str = "custom"
    reference: bool = False
    padded: bool = False
    solver: str = "euler"

    def __post_init__(self) -> None:
        object.__setattr__(self, "methods", tuple(self.methods))
        object.__setattr__(self, "padded", self.padded or self.reference)
        if self.solver not in SOLVERS:
            raise RecipeError(f"there is no solver {self.solver!r}: known are {', '.join(SOLVERS)}")
        for task in TASKS:
            writers = Counter(field for m in self.of(task) for field in m.writes)
            clashes = sorted(field for field, n in writers.items() if n > 1)
            if clashes:
                raise RecipeError(f"recipe {self.name!r}: several methods write {', '.join(clashes)} for {task}")

    def __str__(self) -> str:
        flags = [flag for flag in ("reference", "padded") if getattr(self, flag)]
        more = flags + ([f"solver {self.solver}"] if self.solver != "euler" else [])
        what = f" ({', '.join(more)})" if more else ""
        lines = [f"{self.name}{what}:" if self.methods else f"{self.name}{what}: no method"]
        for method in self.methods:
            settings = ", ".join(f"{k} {v}" for k, v in method.to_dict().items() if k not in ("method", "task"))
            lines.append(f"  {method.task}: {method.name}{f' ({settings})' if settings else ''}")
        return "\n".join(lines)

    def reads(self, observed: str, task: Task) -> bool:
        """Whether a method for the task decides by this field of `Observations`."""
        return any(observed in m.reads for m in self.of(task))

    def of(self, task: Task) -> tuple[Method, ...]:
        return tuple(m for m in self.methods if m.task == task)

    def plan(self, step: Step, observed: Observations, scales: Mapping[str, float]) -> Plan:
        """The plan of one forward; ``scales``: the request's guidance scale by branch ({} = no guidance)."""
        plan = Plan(scales=scales)
        for method in self.of(step.task):
            plan = method.edit(plan, step, observed)
        return plan

    def forwards(self, steps: int) -> int:
        """Forwards of a generation for which ``steps`` were asked."""
        for method in self.of("generation"):
            steps = method.forwards(steps)
        return steps - 1 if self.reference else steps

    def ffn_prunes(self) -> tuple[FFNPrune, ...]:
        """The FFN masks this recipe needs."""
        return tuple(m for m in self.methods if m.name == FFNPrune.name and m.ratio)  # type: ignore[attr-defined,misc]

    def token_prunes(self) -> tuple[TokenPrune, ...]:
        """The pruning by value norm in this recipe, whose side calibration may settle or contradict."""
        pruning: list[TokenPrune] = [m for m in self.methods if m.name == TokenPrune.name]  # type: ignore[misc]
        return tuple(m for m in pruning if m.ratio and m.score == "value_norm")

    def check(self, spec: ModelSpec) -> None:
        """Raise `RecipeError` unless the model has everything the methods work on."""
        if self.solver != "euler" and spec.drawing != "flow":
            raise RecipeError(f"the solver {self.solver!r} is for models that draw by flow, not for {spec.family}")
        for method in self.methods:
            method.check(spec)

    def resolved(self, side: Side | None) -> Recipe:
        """This recipe with "calibrated" pruning sides settled to ``side``."""
        if side is None:
            return self
        return replace(self, methods=tuple(m.resolved(side) for m in self.methods))

    def without(self, *names: str) -> Recipe:
        """This recipe less the methods named, for ablations."""
        unknown = set(names) - METHODS.keys()
        if unknown:
            raise RecipeError(f"unknown methods {sorted(unknown)}; known are {sorted(METHODS)}")
        kept = tuple(m for m in self.methods if m.name not in names)
        return replace(self, methods=kept, name=f"{self.name} without {', '.join(names)}")

    def to_dict(self) -> dict[str, Any]:
        flags = {"reference": self.reference, "padded": self.padded}
        return {"name": self.name, **flags, "solver": self.solver, "methods": [m.to_dict() for m in self.methods]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """Inverse of :meth:`to_dict`; unknown methods, settings or keys raise `RecipeError`."""
        unknown = set(data) - {"name", "reference", "padded", "solver", "methods"}
        if unknown:
            raise RecipeError(f"unknown recipe keys {sorted(unknown)}")
        if not isinstance(data.get("name", ""), str):
            raise RecipeError(f"a recipe's name must be a string, got {data['name']!r}")
        entries = data.get("methods", ())
        if not isinstance(entries, list | tuple) or not all(isinstance(entry, Mapping) for entry in entries):
            raise RecipeError("a recipe's methods must be a list of objects")
        methods = []
        for entry in entries:
            settings = dict(entry)
            name = settings.pop("method", None)
            if not isinstance(name, str) or name not in METHODS:
                raise RecipeError(f"unknown method {name!r}; known are {sorted(METHODS)}")
            fields = {field.name: field.default is MISSING for field in dataclass_fields(METHODS[name])}
            if strange := settings.keys() - fields.keys():
                raise RecipeError(
                    f"{name} has no setting {', '.join(sorted(map(str, strange)))}: it has {', '.join(fields)}"
                )
            if lacking := {field for field, needed in fields.items() if needed} - settings.keys():
                raise RecipeError(f"{name} lacks its {', '.join(sorted(lacking))}")
            try:
                methods.append(METHODS[name](**settings))
            except RecipeError:
                raise
            except (ArithmeticError, TypeError, ValueError) as error:  # a setting of another kind
                raise RecipeError(f"{name}: {error}") from error
        flags = {flag: bool(data.get(flag, False)) for flag in ("reference", "padded")}
        return cls(tuple(methods), data.get("name", "custom"), **flags, solver=data.get("solver", "euler"))

    def save(self, path: str | Path) -> None:
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n")


def exact() -> Recipe:
    """No approximation: the full model, with only wasted work removed."""
    return Recipe(name="exact")
