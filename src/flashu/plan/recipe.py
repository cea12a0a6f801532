"""A recipe: the methods of a run, folded into one plan per forward."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flashu.errors import RecipeError
from flashu.plan import SOLVERS, TASKS, Plan, Room, Seen, Side, Step, Task
from flashu.plan.methods import METHODS, AdaptiveGuidance, FFNPrune, HeadCache, LayerSkip, Method, TokenPrune


@dataclass(frozen=True)
class Recipe:
    """Methods for both tasks. Each plan field has one writer per task, so the order of methods does not matter.

    ``padded``: compute whole rows padded to full length every forward, as the original program does, instead of the
    prompt once and the image block. ``reference``: reproduce the released FlashU program rather than the paper: padded
    rows, as many time points as steps (one forward fewer), calibration on text embeddings. ``solver``: how velocities
    become latents (`flow`).
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

    def reads(self, observed: str, task: Task) -> bool:
        """Whether a method for the task decides by this field of `Seen`."""
        return any(observed in m.reads for m in self.of(task))

    def of(self, task: Task) -> tuple[Method, ...]:
        return tuple(m for m in self.methods if m.task == task)

    def plan(self, step: Step, seen: Seen, guidance: float | None) -> Plan:
        """The plan of one forward; ``guidance`` is the request's scale (None = no unconditional branch)."""
        plan = Plan(guidance=guidance)
        for method in self.of(step.task):
            plan = method.edit(plan, step, seen)
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

    def check(self, room: Room) -> None:
        """Raise `RecipeError` unless the model has every room the methods work on."""
        for method in self.methods:
            method.check(room)

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
    def from_dict(cls, data: dict[str, Any]) -> Recipe:
        """Inverse of :meth:`to_dict`; unknown methods, settings or keys raise `RecipeError`."""
        unknown = set(data) - {"name", "reference", "padded", "solver", "methods"}
        if unknown:
            raise RecipeError(f"unknown recipe keys {sorted(unknown)}")
        methods = []
        for entry in data.get("methods", ()):
            settings = dict(entry)
            name = settings.pop("method", None)
            if name not in METHODS:
                raise RecipeError(f"unknown method {name!r}; known are {sorted(METHODS)}")
            try:
                methods.append(METHODS[name](**settings))
            except TypeError as error:
                raise RecipeError(f"{name}: {error}") from error
        flags = {flag: bool(data.get(flag, False)) for flag in ("reference", "padded")}
        return cls(tuple(methods), data.get("name", "custom"), **flags, solver=data.get("solver", "euler"))

    @classmethod
    def from_file(cls, path: str | Path) -> Recipe:
        """Read a recipe saved as JSON."""
        try:
            data = json.loads(Path(path).read_text())
        except FileNotFoundError as error:
            raise RecipeError(f"no preset {str(path)!r}: give {', '.join(PRESETS)} or a recipe file") from error
        except json.JSONDecodeError as error:
            raise RecipeError(f"{path} is not a recipe file: {error}") from error
        return cls.from_dict(data.get("recipe", data))

    def save(self, path: str | Path) -> None:
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n")


@dataclass(frozen=True)
class UnderstandingConfig:
    """FlashU's settings for questions about images (Table 8)."""

    r_p: float = 0.10
    r_LS: float = 0.10
    T_LS: int = 10
    tau: float = 0.3
    token_layer: int = 2
    token_ratio: float = 0.50
    token_side: str = "largest"

    def methods(self) -> tuple[Method, ...]:
        chosen: list[Method] = []
        if self.r_p:
            chosen.append(FFNPrune("understanding", self.r_p, self.tau))
        if self.r_LS:
            chosen.append(LayerSkip("understanding", self.r_LS, self.T_LS, self.tau))
        if self.token_ratio:
            chosen.append(TokenPrune("understanding", self.token_layer, self.token_ratio, self.token_side))  # type: ignore[arg-type]
        return tuple(chosen)


@dataclass(frozen=True)
class FlashUConfig:
    """FlashU's settings by the paper's symbols; the defaults are Table 7 (generation) and Table 8 (understanding).

    ``r_p`` FFN pruning ratio. ``r_LS``, ``T_LS`` layer-skipping ratio and interval. ``T_cache`` head-cache interval
    (1 = no cache). ``tau`` share (< 1) or number of the last forwards that run the full network. ``s_low``,
    ``t_switch``: guidance is s_low * s0 until the last t_switch of the forwards (Eq. 8); ``schedule``
    [(forwards, scale), ...] replaces that and sets the number of forwards. ``steps``: share (T = 0.7 T0) or number of
    forwards; None = as said, 0 = as requested. ``reference``: reproduce the released program (docs/reference.md).
    """

    r_p: float = 0.20
    r_LS: float = 0.20
    T_LS: int = 10
    T_cache: int = 5
    tau: float = 0.3
    schedule: tuple[tuple[int, float], ...] | list[tuple[int, float]] | None = None
    s_low: float = 0.75
    t_switch: float = 0.3
    steps: float | None = None
    understanding: UnderstandingConfig = UnderstandingConfig()
    reference: bool = False

    def __post_init__(self) -> None:
        if self.schedule is not None:
            object.__setattr__(self, "schedule", tuple(tuple(phase) for phase in self.schedule))
            if not self.schedule:
                raise RecipeError("schedule needs at least one (forwards, scale) phase; use None for the default")
            total = sum(count for count, _ in self.schedule)
            if self.steps is not None and self.steps >= 1 and total > self.steps:
                raise RecipeError(f"the schedule covers {total} forwards but steps={self.steps}; drop one of the two")
        self.recipe()

    def recipe(self, name: str = "flashu") -> Recipe:
        """The recipe these settings stand for."""
        # The released program counts steps from 1 to N but takes N-1 forwards: its full window is one shorter.
        tau = max(self.tau - 1, 0) if self.reference else self.tau
        methods: list[Method] = []
        if self.r_p:
            methods.append(FFNPrune("generation", self.r_p, tau))
        if self.r_LS:
            methods.append(LayerSkip("generation", self.r_LS, self.T_LS, tau, normed=self.reference))
        if self.T_cache != 1:
            methods.append(HeadCache("generation", self.T_cache, tau, first=int(self.reference)))
        guided = self.schedule is not None or self.steps != 0 or self.s_low != 1
        if guided:
            methods.append(AdaptiveGuidance("generation", self.s_low, self.t_switch, self._phases(), self._steps()))
        understanding = () if self.reference else self.understanding.methods()
        return Recipe((*methods, *understanding), name, self.reference)

    def _phases(self) -> tuple[tuple[int, float], ...]:
        return tuple(self.schedule or ())

    def _steps(self) -> float:
        if self.steps is not None:
            return self.steps
        return sum(count for count, _ in self._phases()) or 0.7


def exact() -> Recipe:
    """No approximation: the full model, with only wasted work removed."""
    return Recipe(name="exact")


def paper() -> Recipe:
    """FlashU as published (Tables 7 and 8)."""
    return FlashUConfig().recipe("paper")


def fast() -> Recipe:
    """FlashU pushed further: more pruned, more skipped, a shorter full window."""
    pushed = UnderstandingConfig(r_p=0.20, r_LS=0.20, token_ratio=0.75, token_side="calibrated")
    return FlashUConfig(r_p=0.30, r_LS=0.30, tau=0.15, understanding=pushed).recipe("fast")


def quality() -> Recipe:
    """FlashU held back: less pruned, no skipped layers, every visual token kept, a longer full window."""
    careful = UnderstandingConfig(r_p=0.10, r_LS=0, token_ratio=0)
    return FlashUConfig(r_p=0.10, r_LS=0, T_cache=2, tau=0.4, understanding=careful).recipe("quality")


PRESETS: dict[str, Callable[[], Recipe]] = {"exact": exact, "paper": paper, "fast": fast, "quality": quality}


SHIPPED = Path(__file__).parents[1] / "assets" / "presets"
"""Presets tuned for one model, MODEL-NAME.json, each with the evidence for it (`flashu tune`)."""


def shipped(name: str, model: str = "scenes") -> Path | None:
    """The file of a preset tuned for a model: by its name ("balanced"), or in full ("scenes-balanced")."""
    files = {path.stem: path for path in SHIPPED.glob("*.json")}
    return files.get(f"{model}-{name}") or files.get(name)


def load_recipe(recipe: Recipe | FlashUConfig | str | Path, model: str = "scenes") -> Recipe:
    """A recipe from itself, from settings, from a preset's name (general, or tuned for ``model``) or from a file."""
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, FlashUConfig):
        return recipe.recipe()
    if recipe in PRESETS:
        return PRESETS[str(recipe)]()
    return Recipe.from_file(shipped(str(recipe), model) or recipe)
