"""What stands behind a patched instance of an original authors' class."""

from __future__ import annotations

import logging
import threading
from typing import Any

from torch import nn

from flashu.inference.calibrate.calibration import Calibration
from flashu.inference.engine import recipe_for
from flashu.inference.prepared import PreparedRecipe
from flashu.interfaces.bound import unbind
from flashu.models.adopt import stamp
from flashu.plan import Task
from flashu.plan.presets import RecipeSource
from flashu.plan.recipe import Recipe
from flashu.runtime.compile import LayerCalls
from flashu.runtime.executor import Executor

log = logging.getLogger("flashu")


class PatchedInstance:
    """A recipe prepared for an instance, and ``model``, our view of that instance's weights. A family's subclass binds
    the instance's methods and answers them.

    It holds the weights, not the instance, which may be cast, moved or reloaded at any time: what was derived from its
    weights is then made anew.
    """

    def __init__(self, model: Any, module: nn.Module, recipe: RecipeSource, calibration: Calibration | None) -> None:
        self.model = model
        self._asked = recipe_for(model, recipe)
        self.check(self._asked)
        self.prepared = PreparedRecipe(self._asked, calibration, LayerCalls())
        self._stamp = stamp(module)
        self._lock = threading.RLock()
        self._logged: set[str] = set()

    def check(self, recipe: Recipe) -> None:
        """`RecipeError` for a recipe that cannot be followed here."""
        recipe.check(self.model.spec)

    def share(self, module: nn.Module) -> None:
        """Point every parameter of ``model`` at the instance's."""
        raise TypeError(f"{type(self).__name__} must define share")

    def unbind(self, module: nn.Module) -> None:
        unbind(module)

    @property
    def recipe(self) -> Recipe:
        return self.prepared.recipe

    @property
    def calibration(self) -> Calibration | None:
        return self.prepared.calibration

    def refresh(self, module: nn.Module) -> None:
        """Follow the instance: after a cast, a move or a new checkpoint, point at its tensors and prepare anew."""
        with self._lock:
            now = stamp(module)
            if now == self._stamp:
                return
            self.share(module)
            self.prepared = PreparedRecipe(self._asked, self.calibration, self.prepared.calls)
            self._stamp = now

    def _ready(self, task: Task) -> Executor:
        """An executor with what a task needs. All statistics are there by now, so no layout is needed to gather any."""
        self.prepared.prepare(self.model, None, task)
        return self._executor()

    def _executor(self) -> Executor:
        return Executor(self.prepared.runner(self.model))

    def _leave(self, why: str) -> None:
        """Say once why a call goes to the original program."""
        if why not in self._logged:
            self._logged.add(why)
            log.warning("left to the original program: %s", why)
