"""What stands behind a patched instance of the original class."""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from flashu.errors import RecipeError
from flashu.inference.calibrate.calibration import Calibration
from flashu.inference.run import StepTrace
from flashu.interfaces.instance import PatchedInstance
from flashu.models.showo2 import naive
from flashu.models.showo2.dropin.adopt import Block, Unpatchify, adopted, share
from flashu.models.showo2.dropin.bound import ShowO2Methods
from flashu.models.showo2.dropin.drawing import Call, Drawing, absolute
from flashu.models.showo2.dropin.grid import DEMO
from flashu.models.showo2.dropin.masks import as_in_training, layout_of, with_images_marked
from flashu.models.showo2.dropin.talking import answered
from flashu.models.showo2.dropin.tuning import learn_from_drawing, learn_from_question
from flashu.models.showo2.model import ShowO2
from flashu.plan.presets import RecipeSource
from flashu.plan.recipe import Recipe, exact
from flashu.runtime.layout import TokenLayout

log = logging.getLogger("flashu")


class DropIn(PatchedInstance):
    """See `PatchedInstance`. Each thread has its own drawing."""

    model: ShowO2

    def __init__(
        self,
        module: nn.Module,
        recipe: RecipeSource,
        calibration: Calibration | None = None,
        *,
        exact_rope: bool = False,
        unpatchify: Unpatchify = "raster",
        understanding_block: Block = "script",
    ) -> None:
        view: ShowO2 = adopted(
            module, exact_rope=exact_rope, unpatchify=unpatchify, understanding_block=understanding_block
        )
        super().__init__(view, module, recipe, calibration)
        self._exact_rope = exact_rope
        self._mine = threading.local()
        self._last = DEMO

    def check(self, recipe: Recipe) -> None:
        if recipe.solver != "euler":
            raise RecipeError(f"the program's own sampler moves the latents, so the solver cannot be {recipe.solver}")
        super().check(recipe)

    def share(self, module: nn.Module) -> None:
        share(self.model, module, self._exact_rope)
        self._mine = threading.local()

    @property
    def trace(self) -> list[StepTrace]:
        """One entry per evaluation of the first of this thread's latest images."""
        drawing = self._drawing
        return [] if drawing is None else drawing.trace

    def bind(self, module: nn.Module) -> None:
        """Answer the instance's calls from now on."""
        ShowO2Methods(module, self).bind()

    # -- drawing -----------------------------------------------------------------------------------------------
    @torch.no_grad()
    def velocity(self, module: nn.Module, call: Call) -> Tensor | None:
        """What the original's `t2i_generate` returns for a call, or None where only the original can compute it."""
        self.refresh(module)
        if why := call.unlike_any_drawing(self.model.config.patch_size):
            self._leave(why)
            return None
        if call.slots > 1 and self.recipe.padded:
            self._leave("the released FlashU program draws one image per row")
            return None
        times = call.t.reshape(-1).tolist()
        if min(times) != max(times):
            self._leave("the rows are at different times")
            return None
        drawing = self._drawing
        if drawing is None or not drawing.continues(call, times[0]):
            if why := call.odd_start():
                self._leave(why)
                return None
            drawing = self._begin(call)
        v = drawing.velocity(call, times[0])
        self._last = drawing.total
        return call.placed(v)

    def _begin(self, call: Call) -> Drawing:
        hint = absolute(self.recipe)
        with self._lock:
            if "generation" in self.prepared.lacking("generation"):
                log.info("calibrating on the first images")
                learn_from_drawing(self.prepared, self.model, call, hint or self._last)
            executor = self._ready("generation")
        self._mine.drawing = Drawing(executor, self.recipe, call, hint, self._last)
        return self._mine.drawing

    @property
    def _drawing(self) -> Drawing | None:
        return getattr(self._mine, "drawing", None)

    # -- seeing and talking ------------------------------------------------------------------------------------
    @torch.no_grad()
    def answer(
        self,
        module: nn.Module,
        x: Tensor,
        mask: Tensor | None,
        limit: int,
        stops: Collection[int],
        *,
        late: bool,
        **sampling: Any,
    ) -> list[int] | None:
        """Tokens after an embedded row x [1, S, h] under a dense mask (None = causal), or None where only the original
        can compute them. ``late``: the mask's blocks begin one token late; "training" puts them right."""
        self.refresh(module)
        if x.ndim != 3 or len(x) != 1:
            self._leave("there is more than one row to answer")
            return None
        layout = TokenLayout.causal([x.shape[1]]) if mask is None else layout_of(mask, late=late)
        if layout is None or layout.shape[1] != x.shape[1]:
            self._leave("the mask is not causal text with whole image blocks")
            return None
        x = x.to(self.model.dtype)
        if late:
            layout = with_images_marked(layout, x, self.model.showo.model.embed_tokens.weight)
            if self.model.config.understanding_block == "training":
                layout = as_in_training(layout)
        with self._lock:
            lacking = "understanding" in self.prepared.lacking("understanding")
            if lacking and not bool(layout.visual.any()):
                log.info("text alone does not calibrate: computed exactly until a question about an image came")
                executor, recipe = self._executor(), exact()
            else:
                if lacking:
                    log.info("calibrating on the first question")
                    learn_from_question(self.prepared, self.model, x, layout, max(limit, 1), stops)
                executor, recipe = self._ready("understanding"), self.recipe
        return answered(executor, recipe, x, layout, limit, stops, **sampling)

    @torch.no_grad()
    def spliced(self, module: nn.Module, ids: Tensor, latents: Tensor, t: Tensor, positions: Tensor) -> Tensor:
        """Embedded rows with their images in place, as the original puts them there."""
        self.refresh(module)
        return naive.splice(self.model, ids, latents, t, positions)[0]

    def embed(self, module: nn.Module, ids: Tensor) -> Tensor:
        self.refresh(module)
        return self.model.embed_tokens(ids)
