"""What stands behind a patched instance of the original class."""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from flashu.errors import RecipeError
from flashu.inference.calibrate.calibration import Calibration
from flashu.inference.prepared import Fitted
from flashu.inference.run import Record, Run
from flashu.models.showo2 import naive
from flashu.models.showo2.dropin.adopt import Block, Layout, adopted, share, stamp
from flashu.models.showo2.dropin.drawing import Call, Drawing, absolute, embedded, lay_out
from flashu.models.showo2.dropin.grid import DEMO
from flashu.models.showo2.dropin.masks import moved_to_training, tokens_of, told_apart
from flashu.models.showo2.dropin.talking import talk
from flashu.models.showo2.dropin.tuning import lacks, tune_on_drawing, tune_on_question
from flashu.models.showo2.model import ShowO2
from flashu.plan import Task
from flashu.plan.recipe import Recipe, exact
from flashu.runtime.rooms import Rooms
from flashu.runtime.tokens import Tokens

log = logging.getLogger("flashu")


class DropIn:
    """A recipe fitted to an instance of the original class, and our view of that instance's weights.

    It holds the weights, not the instance. Each thread has its own drawing. The instance may be cast, moved or
    reloaded at any time: what was derived from its weights is then made anew.
    """

    def __init__(
        self,
        module: nn.Module,
        recipe: Recipe,
        calibration: Calibration | None = None,
        *,
        exact_rope: bool = False,
        unpatchify: Layout = "raster",
        understanding_block: Block = "script",
    ) -> None:
        self.model: ShowO2 = adopted(
            module, exact_rope=exact_rope, unpatchify=unpatchify, understanding_block=understanding_block
        )
        if recipe.solver != "euler":
            raise RecipeError(f"the program's own sampler moves the latents, so the solver cannot be {recipe.solver}")
        self.fitted = Fitted(recipe, calibration, Rooms())
        self.fitted.check(self.model)
        self._asked = recipe
        self._exact_rope = exact_rope
        self._stamp = stamp(module)
        self._lock = threading.RLock()
        self._mine = threading.local()
        self._last = DEMO
        self._told: set[str] = set()

    @property
    def recipe(self) -> Recipe:
        return self.fitted.recipe

    @property
    def calibration(self) -> Calibration | None:
        return self.fitted.calibration

    @property
    def trace(self) -> list[Record]:
        """One record per evaluation of this thread's latest images."""
        drawing: Drawing | None = getattr(self._mine, "drawing", None)
        return [] if drawing is None else drawing.run.trace

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
        drawing: Drawing | None = getattr(self._mine, "drawing", None)
        if drawing is None or not drawing.continues(call, times[0]):
            if why := call.odd_start():
                self._leave(why)
                return None
            drawing = self._begin(call)
        v = drawing.velocity(call, times[0])
        self._last = drawing.run.forwards
        return call.placed(v)

    def _begin(self, call: Call) -> Drawing:
        hint = absolute(self.recipe)
        with self._lock:
            if lacks(self.fitted, "generation"):
                log.info("calibrating on the first images")
                tune_on_drawing(self.fitted, self.model, call, hint or self._last)
            self._ready("generation")
            runner, recipe = self.fitted.runner(self.model), self.recipe
        canvas = lay_out(self.model, call, recipe.padded)
        guidance = call.guidance if call.guidance > 0 else None
        run = Run(runner, recipe, "generation", hint or self._last, guidance=guidance)
        drawing = Drawing(
            run,
            canvas,
            call.ids.clone(),
            call.latents.shape,
            call.held.clone(),
            call.guidance,
            embedded(self.model, canvas),
            hint,
            self._last,
        )
        self._mine.drawing = drawing
        return drawing

    # -- seeing and talking ------------------------------------------------------------------------------------
    @torch.no_grad()
    def answer(
        self,
        module: nn.Module,
        x: Tensor,
        mask: Tensor | None,
        most: int,
        stops: Collection[int],
        *,
        late: bool,
        **sampling: Any,
    ) -> Iterator[int] | None:
        """Tokens after an embedded row x [1, S, h] under a dense mask (None = causal), or None where only the original
        can compute them. ``late``: the mask's blocks begin one token late; "training" puts them right."""
        self.refresh(module)
        if x.ndim != 3 or len(x) != 1:
            self._leave("there is more than one row to answer")
            return None
        tokens = Tokens.text([x.shape[1]]) if mask is None else tokens_of(mask, late=late)
        if tokens is None or tokens.shape[1] != x.shape[1]:
            self._leave("the mask is not causal text with whole image blocks")
            return None
        x = x.to(self.model.dtype)
        if late:
            tokens = told_apart(tokens, x, self.model.showo.model.embed_tokens.weight)
            if self.model.config.understanding_block == "training":
                tokens = moved_to_training(tokens)
        with self._lock:
            recipe = self.recipe
            if lacks(self.fitted, "understanding"):
                if bool(tokens.visual.any()):
                    log.info("calibrating on the first question")
                    tune_on_question(self.fitted, self.model, x, tokens, max(most, 1), next(iter(stops), None))
                else:
                    log.info("text alone does not calibrate: computed exactly until a question about an image came")
                    recipe = exact()
            if recipe.of("understanding"):
                self._ready("understanding")
                recipe = self.recipe
            runner = self.fitted.runner(self.model)
        return talk(runner, recipe, x, tokens, most, stops, **sampling)

    @torch.no_grad()
    def spliced(self, module: nn.Module, ids: Tensor, latents: Tensor, t: Tensor, positions: Tensor) -> Tensor:
        """Embedded rows with their images in place, as the original puts them there."""
        self.refresh(module)
        return naive.splice(self.model, ids, latents, t, positions)[0]

    def embed(self, module: nn.Module, ids: Tensor) -> Tensor:
        self.refresh(module)
        return self.model.embed_text(ids)

    # -- inside ------------------------------------------------------------------------------------------------
    def refresh(self, module: nn.Module) -> None:
        """Follow the instance: after a cast, a move or a new checkpoint, point at its tensors and fit anew."""
        with self._lock:
            now = stamp(module)
            if now == self._stamp:
                return
            share(self.model, module, self._exact_rope)
            self.fitted = Fitted(self._asked, self.calibration, self.fitted.rooms)
            self._stamp = now
            self._mine = threading.local()

    def _ready(self, task: Task) -> None:
        # All statistics are there by now, so nothing is gathered and no processor is needed.
        self.fitted.prepare(self.model, None, task)  # type: ignore[arg-type]

    def _leave(self, why: str) -> None:
        """Say once why a call goes to the original program."""
        if why not in self._told:
            self._told.add(why)
            log.warning("left to the original program: %s", why)
