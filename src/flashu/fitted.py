"""A recipe fitted to one model: the calibration it needs, the FFN banks built from it, the pruning side settled."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Any

from flashu.calibrate import gather, samples
from flashu.calibrate.bank import RELEASED_ALIGNMENT, bank, kept
from flashu.calibrate.calibration import Calibration
from flashu.errors import FlashUError
from flashu.models.layers import FFNWeights
from flashu.models.showo2.model import ShowO2
from flashu.models.showo2.processor import Picture, Processor
from flashu.models.weights import checkpoint_hash
from flashu.plan import Room, Task
from flashu.recipe import Recipe
from flashu.runtime.rooms import Rooms
from flashu.runtime.runner import Runner

log = logging.getLogger("flashu")


class Fitted:
    """What an engine derives from its model and recipe. It holds no reference to the model, so it can outlive none.

    Fitting happens when a task is first asked for, under a lock; afterwards nothing here changes.
    """

    def __init__(self, recipe: Recipe, calibration: Calibration | None, rooms: Rooms) -> None:
        self.recipe = recipe
        self.calibration = calibration
        self.rooms = rooms
        self.banks: dict[str, Sequence[FFNWeights]] = {}
        self._ready: set[Task] = set()
        self._lock = threading.RLock()

    def check(self, model: ShowO2) -> None:
        """`RecipeError` unless the model has every room the methods work on."""
        self.recipe.check(Room("this model", model.num_layers, model.config.head.num_layers))

    def runner(self, model: ShowO2) -> Runner:
        return Runner(model, self.banks, self.rooms)

    def prepare(self, model: ShowO2, processor: Processor, task: Task, prompt: str | None = None) -> None:
        """Gather the calibration the recipe lacks for a task (generation: on ``prompt``), build its FFN banks, settle
        its pruning side. Does nothing the second time."""
        with self._lock:
            if task in self._ready:
                return
            prunes = [m for m in self.recipe.ffn_prunes() if m.task == task]
            sided = [m for m in self.recipe.token_prunes() if m.task == task]
            lacking = {m.mask for m in prunes} - set(self.calibration.scores if self.calibration else ())
            if sided and (self.calibration is None or self.calibration.correlation is None):
                lacking.add("understanding")
            for mask in sorted(lacking):
                log.info("calibrating %s", mask)
                self.calibrate(model, processor, mask, prompts=None if prompt is None else [prompt])
            for m in prunes:
                assert self.calibration is not None
                multiple = RELEASED_ALIGNMENT if self.recipe.reference else None
                index = kept(self.calibration.scores[m.mask], m.ratio, multiple)
                self.banks.setdefault(m.mask, bank(model, index))
            for p in sided:
                assert self.calibration is not None
                measured = self.calibration.side(p.layer)
                if measured is not None and p.side not in ("calibrated", measured):
                    log.warning(
                        "token pruning drops the %s value norms, but attention on this model calls for the %s "
                        "(correlation %+.2f at layer %d)",
                        p.side,
                        measured,
                        self.calibration.norm_correlation(p.layer),
                        p.layer,
                    )
                self.recipe = self.recipe.resolved(measured)
            self._ready.add(task)

    def calibrate(
        self,
        model: ShowO2,
        processor: Processor,
        task: str,
        *,
        prompts: Sequence[str] | None = None,
        pairs: Sequence[tuple[Picture, str]] | None = None,
    ) -> Calibration:
        """See `Engine.calibrate`."""
        known = self.calibration or Calibration(checkpoint_hash(model))
        about: dict[str, Any]
        if task == "generation":
            drawn = list(prompts or [samples.PROMPT])
            about = {"prompts": drawn, "reference": self.recipe.reference}
            if self.recipe.reference:
                scores = gather.text_only_scores(model, processor, drawn[0])
            else:
                scores = gather.generation_scores(model, processor, drawn)
        elif task == "understanding":
            seen = samples.questions() if pairs is None else list(pairs)
            about = {"pairs": len(seen), "source": "procedural scenes" if pairs is None else "given"}
            scores, correlation = gather.understanding_statistics(model, processor, seen)
            known = known.with_correlation(correlation)
        else:
            raise FlashUError(f"cannot calibrate {task!r}: the tasks are generation and understanding")
        with self._lock:
            self.calibration = known.with_scores(task, scores, about)
            self.banks.pop(task, None)
            self._ready.clear()
        return self.calibration
