"""A recipe prepared for one model: the calibration it needs, the FFN banks built from it, the pruning side settled."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from flashu.errors import CalibrationError, FlashUError
from flashu.inference.actions import Layout
from flashu.inference.calibrate import gather, samples
from flashu.inference.calibrate.bank import Mask, Slices, arrange, arranged, arrangement, bank, kept, restore, sliced
from flashu.inference.calibrate.calibration import Calibration
from flashu.models.pictures import Picture
from flashu.models.protocol import UnifiedModel
from flashu.models.weights import checkpoint_hash
from flashu.plan import Task
from flashu.plan.cost import RELEASED_ALIGNMENT
from flashu.plan.methods import FFNPrune
from flashu.plan.recipe import Recipe
from flashu.runtime.compile import LayerCalls
from flashu.runtime.graphs import GraphPool
from flashu.runtime.runner import Bank, Runner
from flashu.scenes.world import world_of

log = logging.getLogger("flashu")


class PreparedRecipe:
    """What an engine derives from its model and recipe. It holds no reference to the model, so it can outlive none.

    Preparing happens when a task is first asked for, under a lock; afterwards nothing here changes. ``in_place``: the
    banks are slices of the model's own weights, put in order for both tasks at once, and not copies.
    """

    def __init__(
        self,
        recipe: Recipe,
        calibration: Calibration | None,
        calls: LayerCalls,
        graphs: GraphPool | None = None,
        *,
        in_place: bool = False,
        routers: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.recipe, self.calibration = recipe, calibration
        self.routers = routers
        self.calls, self.graphs = calls, graphs
        self.in_place = in_place
        self.banks: dict[str, Bank] = {}
        self._slices: Slices = {}
        self._orders: list[Tensor] | None = None
        """The neurons' order in every FFN, if this put them in it."""
        self._made_of: tuple[torch.dtype, torch.device] | None = None
        self._ready: set[Task] = set()
        self._lock = threading.RLock()

    def runner(self, model: UnifiedModel) -> Runner:
        return Runner(model, {**self.banks, **sliced(model, self._slices)}, self.calls, routers=self.routers)

    def prepare(self, model: UnifiedModel, layout: Layout | None, task: Task, prompt: str | None = None) -> None:
        """Gather the calibration that the recipe lacks for a task (generation: on ``prompt``), build its FFN banks,
        settle its pruning side. Does nothing the second time. ``layout`` None: nothing is lacking."""
        with self._lock:
            if self._orders is not None and not arranged(model, self._orders):
                self._forget()
            if self._made_of != (model.dtype, model.device):  # cast or moved: the banks are still of its old weights
                self.banks, self._made_of = {}, (model.dtype, model.device)
                self._ready.clear()
            if task in self._ready:
                return
            whole = self.in_place and layout is not None and layout.sees
            prunes = [m for m in self.recipe.ffn_prunes() if whole or m.task == task]
            sided = [m for m in self.recipe.token_prunes() if m.task == task]
            for mask in sorted(self.lacking(task) | ({m.mask for m in prunes} - self._known())):
                if layout is None:
                    raise CalibrationError(f"there are no statistics {mask!r} to prune by: give a calibration that has")
                log.info("calibrating %s", mask)
                self.calibrate(model, layout, mask, prompts=None if prompt is None else [prompt])
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

    def lacking(self, task: Task) -> set[str]:
        """Statistics that the recipe needs for a task and the calibration has not."""
        lacking = {m.mask for m in self.recipe.ffn_prunes() if m.task == task} - self._known()
        sided = any(m.task == task for m in self.recipe.token_prunes())
        if sided and (self.calibration is None or self.calibration.correlation is None):
            lacking.add("understanding")
        return lacking

    def _known(self) -> set[str]:
        return set(self.calibration.scores) if self.calibration is not None else set()

    def _build(self, model: UnifiedModel, prunes: Sequence[FFNPrune]) -> None:
        multiple = RELEASED_ALIGNMENT if self.recipe.reference else None
        masks: dict[str, Mask] = {}
        for m in prunes:
            if m.mask not in self.banks.keys() | self._slices.keys() | masks.keys():
                assert self.calibration is not None
                masks[m.mask] = kept(self.calibration.scores[m.mask], m.ratio, multiple)
        if not masks:
            return
        if self.in_place:
            self._orders = arrangement(model, masks)
            self._slices = arrange(model, masks)
        else:
            self.banks |= {mask: bank(model, index) for mask, index in masks.items()}

    def release(self, model: UnifiedModel) -> None:
        """Give a model that was put in order its own order back, and forget what was derived from it."""
        with self._lock:
            if self._orders is not None and arranged(model, self._orders):
                restore(model)
            self._forget()

    def _forget(self) -> None:
        self.banks, self._slices, self._orders = {}, {}, None
        self._ready.clear()
        self._drop_graphs()

    def _drop_graphs(self) -> None:
        """Captured graphs read the banks where they lay."""
        if self.graphs is not None:
            self.graphs = GraphPool(self.graphs.capture)

    def calibrate(
        self,
        model: UnifiedModel,
        layout: Layout,
        task: str,
        *,
        prompts: Sequence[str] | None = None,
        pairs: Sequence[tuple[Picture, str]] | None = None,
    ) -> Calibration:
        """See `Engine.calibrate`."""
        about: dict[str, Any]
        correlation = None
        if task == "generation":
            drawn = list(prompts or [samples.PROMPT])
            about = {"prompts": drawn, "reference": self.recipe.reference}
            if self.recipe.reference:
                scores = gather.text_only_scores(model, layout, drawn[0])
            else:
                scores = gather.generation_scores(model, layout, drawn)
        elif task == "understanding":
            world = world_of(layout.defaults.height, layout.defaults.width)
            if pairs is None and world is None:
                log.warning(
                    "calibrating answers on procedural scenes of coloured shapes, which are unlike what this model is "
                    "for: give 20 or more of your own, calibrate('understanding', pairs=[(image, question), ...])"
                )
            asked = samples.questions(world=world) if pairs is None else list(pairs)
            about = {"pairs": len(asked), "source": "procedural scenes" if pairs is None else "given"}
            scores, correlation = gather.understanding_statistics(model, layout, asked)
        else:
            raise FlashUError(f"cannot calibrate {task!r}: the tasks are generation and understanding")
        return self.learn(model, task, scores, about, correlation)

    def learn(
        self, model: UnifiedModel, task: str, scores: Tensor, about: dict[str, Any], correlation: Tensor | None = None
    ) -> Calibration:
        """Take over statistics gathered of a task; what was derived from earlier ones is made anew."""
        known = self.calibration or Calibration(checkpoint_hash(model))
        if correlation is not None:
            known = known.with_correlation(correlation)
        with self._lock:
            self.calibration = known.with_scores(task, scores, about)
            if self.in_place:
                self.release(model)
            self.banks.pop(task, None)
            self._ready.clear()
            self._drop_graphs()
        return self.calibration
