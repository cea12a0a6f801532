"""A recipe fitted to one model: the calibration it needs, the FFN banks built from it, the pruning side settled."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from flashu.errors import FlashUError
from flashu.inference.calibrate import gather, samples
from flashu.inference.calibrate.bank import RELEASED_ALIGNMENT, bank, bank_in_place, kept, restore
from flashu.inference.calibrate.calibration import Calibration
from flashu.models.layers import FFNWeights
from flashu.models.showo2.model import ShowO2
from flashu.models.showo2.processor import Picture, Processor
from flashu.models.weights import checkpoint_hash
from flashu.plan import Room, Task
from flashu.plan.methods import FFNPrune
from flashu.plan.recipe import Recipe
from flashu.runtime.rooms import Rooms
from flashu.runtime.runner import Runner
from flashu.scenes.world import SCENES, world_of

log = logging.getLogger("flashu")


class Fitted:
    """What an engine derives from its model and recipe. It holds no reference to the model, so it can outlive none.

    Fitting happens when a task is first asked for, under a lock; afterwards nothing here changes. ``in_place``: the
    banks are slices of the model's own weights, put in order for both tasks at once, and not copies.
    """

    def __init__(
        self, recipe: Recipe, calibration: Calibration | None, rooms: Rooms, *, in_place: bool = False
    ) -> None:
        self.recipe = recipe
        self.calibration = calibration
        self.rooms = rooms
        self.in_place = in_place
        self.banks: dict[str, Sequence[FFNWeights]] = {}
        self._order: Tensor | None = None
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
            if self.in_place and self._order is not arrangement(model):
                self._forget()
            if task in self._ready:
                return
            whole = self.in_place and processor.vae is not None
            prunes = [m for m in self.recipe.ffn_prunes() if whole or m.task == task]
            sided = [m for m in self.recipe.token_prunes() if m.task == task]
            lacking = {m.mask for m in prunes} - set(self.calibration.scores if self.calibration else ())
            if sided and (self.calibration is None or self.calibration.correlation is None):
                lacking.add("understanding")
            for mask in sorted(lacking):
                log.info("calibrating %s", mask)
                self.calibrate(model, processor, mask, prompts=None if prompt is None else [prompt])
            self._build(model, prunes)
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

    def _build(self, model: ShowO2, prunes: Sequence[FFNPrune]) -> None:
        multiple = RELEASED_ALIGNMENT if self.recipe.reference else None
        masks: dict[str, Tensor] = {}
        for m in prunes:
            if m.mask not in self.banks.keys() | masks.keys():
                assert self.calibration is not None
                masks[m.mask] = kept(self.calibration.scores[m.mask], m.ratio, multiple)
        if not masks:
            return
        if self.in_place:
            self.banks = dict(bank_in_place(model, masks))
            self._order = arrangement(model)
        else:
            self.banks |= {mask: bank(model, index) for mask, index in masks.items()}

    def release(self, model: ShowO2) -> None:
        """Give a model that was put in order its own order back, and forget what was derived from it."""
        with self._lock:
            if self._order is not None and self._order is arrangement(model):
                restore(model)
            self._forget()

    def _forget(self) -> None:
        self.banks, self._order = {}, None
        self._ready.clear()

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
            world = world_of(processor.defaults.height, processor.defaults.width) or SCENES
            seen = samples.questions(world=world) if pairs is None else list(pairs)
            about = {"pairs": len(seen), "source": "procedural scenes" if pairs is None else "given"}
            scores, correlation = gather.understanding_statistics(model, processor, seen)
            known = known.with_correlation(correlation)
        else:
            raise FlashUError(f"cannot calibrate {task!r}: the tasks are generation and understanding")
        with self._lock:
            self.calibration = known.with_scores(task, scores, about)
            if self.in_place:
                self.release(model)
            self.banks.pop(task, None)
            self._ready.clear()
        return self.calibration


def arrangement(model: ShowO2) -> Tensor | None:
    """What tells one order of the model's FFN neurons from another; None while they are as the checkpoint has them."""
    return model.layers[0].mlp.order  # type: ignore[union-attr, return-value]
