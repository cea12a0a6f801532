"""Recipes by name: general ones, and ones tuned for one model."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from flashu.errors import RecipeError
from flashu.plan.files import read_text
from flashu.plan.methods import AdaptiveGuidance, FFNPrune, HeadCache, LayerSkip, Method, TokenPrune
from flashu.plan.recipe import Recipe, exact
from flashu.plan.spec import ModelSpec

log = logging.getLogger("flashu")


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


TUNED = Path(__file__).parents[1] / "assets" / "presets"
"""Presets tuned for one model, MODEL-NAME.json, each with the evidence for it (`flashu tune`)."""


@dataclass(frozen=True)
class Target:
    """The model that a recipe is loaded for: its name, spec and checkpoint hash (None = not known)."""

    name: str
    spec: ModelSpec | None = None
    hash: str | None = None


RecipeSource: TypeAlias = Recipe | FlashUConfig | str | Path


def load_recipe(source: RecipeSource, target: Target | None = None) -> Recipe:
    """A recipe from itself, from settings, from a preset's name, or from a file.

    A general preset, and the papers' settings, leave out, and log, the methods that ``target`` has no structure for. A
    tuned preset is for the model it was tuned on: `RecipeError` for any other.
    """
    if isinstance(source, Recipe):
        return source
    spec = None if target is None else target.spec
    if isinstance(source, FlashUConfig):
        return fitting(source.recipe(), spec)
    if isinstance(source, str) and source in PRESETS:
        return fitting(PRESETS[str(source)](), spec)
    path = _path(source, target)
    data = _read(path)
    wanted = data.get("model_hash")
    if wanted is not None and (target is None or target.hash != wanted):
        weights = "not known here" if target is None or target.hash is None else target.hash
        raise RecipeError(
            f"{path.stem!r} was tuned on the weights {wanted} ({data.get('family')}), these are {weights}: "
            f"use a general preset ({', '.join(PRESETS)}), or make one for this model with `flashu tune`"
        )
    return _recipe(data)


def tuned_on(source: str | Path, target: Target | None = None) -> str | None:
    """The hash of the weights that a preset or recipe file was tuned on, None for a general one. `RecipeError` for what
    `load_recipe` would refuse whatever the weights."""
    if isinstance(source, str) and source in PRESETS:
        return None
    data = _read(_path(source, target))
    _recipe(data)
    return data.get("model_hash")


def fitting(recipe: Recipe, spec: ModelSpec | None) -> Recipe:
    """A recipe without the methods that a model has no structure for."""
    if spec is None:
        return recipe
    kept: list[Method] = []
    for method in recipe.methods:
        try:
            method.check(spec)
            kept.append(method)
        except RecipeError as reason:
            log.info("%s leaves out %s: %s", recipe.name, method.name, reason)
    return replace(recipe, methods=tuple(kept))


def tuned_presets() -> dict[str, Path]:
    """Files of the tuned presets by full name, MODEL-NAME."""
    return {path.stem: path for path in sorted(TUNED.glob("*.json"))}


def tuned_preset(name: str, target: Target | None) -> Path | None:
    """The file of a tuned preset by its name ("balanced": that of the target, else any) or full name; None if none."""
    files = tuned_presets()
    own = None if target is None else files.get(f"{target.name}-{name}")
    return own or files.get(name) or next((p for full, p in files.items() if full.endswith(f"-{name}")), None)


def _path(source: str | Path, target: Target | None) -> Path:
    if not isinstance(source, str | Path):
        raise RecipeError(f"a recipe is a preset's name, a file, settings or a Recipe, not a {type(source).__name__}")
    return tuned_preset(str(source), target) or Path(source)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        data = json.loads(read_text(path))
    except FileNotFoundError as error:
        known = ", ".join((*PRESETS, *tuned_presets()))
        raise RecipeError(f"no preset {str(path)!r}: give {known} or a recipe file") from error
    except (OSError, ValueError, RecursionError) as error:
        raise RecipeError(f"{path} is not a recipe file: {error}") from error
    if not isinstance(data, Mapping):
        raise RecipeError(f"{path} is not a recipe file: it holds a {type(data).__name__}")
    return data


def _recipe(data: Mapping[str, Any]) -> Recipe:
    recipe = data.get("recipe", data)
    if not isinstance(recipe, Mapping):
        raise RecipeError(f"a recipe must be an object, not a {type(recipe).__name__}")
    return Recipe.from_dict(recipe)
