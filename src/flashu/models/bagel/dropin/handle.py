"""What stands behind a patched instance of the original class: its two loops, over contexts that it made itself."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from flashu.errors import FlashUError
from flashu.inference.actions import Action, Append, Decode, Draw
from flashu.inference.calibrate.calibration import Calibration
from flashu.inference.calibrate.gather import observe
from flashu.inference.calibrate.importance import FFNNorms
from flashu.inference.engine import RecipeSource, recipe_for
from flashu.inference.prepared import PreparedRecipe
from flashu.inference.run import Run, StepTrace, complete
from flashu.inference.samplers.flow import FlowSampler
from flashu.interfaces.bound import BoundMethods, unbind
from flashu.models.adopt import sampled_token, stamp
from flashu.models.bagel.dropin.adopt import adopted, share
from flashu.models.bagel.dropin.calls import DrawCall, Held, NotHere
from flashu.models.bagel.guidance import Steering
from flashu.models.bagel.layout import grid
from flashu.models.bagel.model import Bagel
from flashu.models.bagel.rows import block_layout, drawn, words
from flashu.models.bagel.spec import IMAGE, TEXT
from flashu.models.bagel.vision import patches, unpatched
from flashu.plan import MAIN, Task
from flashu.plan.recipe import Recipe, exact
from flashu.runtime.compile import LayerCalls
from flashu.runtime.context import Context
from flashu.runtime.executor import Executor

log = logging.getLogger("flashu")


class DropIn:
    """A recipe prepared for an instance of the original class, and our view of that instance's weights.

    It holds the weights, not the instance, which may be cast, moved or reloaded at any time: what was derived from its
    weights is then made anew.
    """

    def __init__(self, module: nn.Module, recipe: RecipeSource, calibration: Calibration | None = None) -> None:
        self.model: Bagel = adopted(module)
        self._asked = recipe_for(self.model, recipe)
        self._asked.check(self.model.spec)
        self.prepared = PreparedRecipe(self._asked, calibration, LayerCalls())
        self.trace: list[StepTrace] = []
        """One entry per forward of the latest image, or of the latest text."""
        self._stamp = stamp(module)
        self._lock = threading.RLock()
        self._logged: set[str] = set()

    @property
    def recipe(self) -> Recipe:
        return self.prepared.recipe

    @property
    def calibration(self) -> Calibration | None:
        return self.prepared.calibration

    def bind(self, module: nn.Module) -> None:
        """Answer the instance's calls from now on."""
        BagelMethods(module, self).bind()

    def unbind(self, module: nn.Module) -> None:
        unbind(module)

    # -- drawing -----------------------------------------------------------------------------------------------
    @torch.no_grad()
    def latents(self, module: nn.Module, given: Mapping[str, Any]) -> Tensor | None:
        """Latent tokens [N, p * p * z], or None where only the original can compute them."""
        self.refresh(module)
        try:
            call = DrawCall.of(given, self.model.config)
            steering = Steering(*call.scales, call.interval, call.renorm, call.renorm_min)
        except NotHere as why:
            self._leave(str(why))
            return None
        except (FlashUError, KeyError, TypeError, IndexError) as why:
            self._leave(f"the call cannot be understood ({why})")
            return None
        with self._lock:
            if "generation" in self.prepared.lacking("generation"):
                log.info("calibrating on the first image")
                norms = FFNNorms()
                with torch.inference_mode():
                    observe(self.model, self._run(call, steering, exact()), norms)
                about = {"source": "the caller's script, drawing one image"}
                self.prepared.learn(self.model, "generation", norms.scores(self.model), about)
            executor = self._ready("generation")
        run = self._run(call, steering, self.recipe)
        with torch.inference_mode():
            complete(executor, [run])
        self.trace = run.trace
        tokens = patches(run.drawn[-1][None], self.model.config.latent_patch_size)[0]
        return tokens.to(call.noise.device, call.noise.dtype).clone()

    def _run(self, call: DrawCall, steering: Steering, recipe: Recipe) -> Run:
        config, (rows, columns) = self.model.config, call.size
        patch = config.latent_patch_size
        layout = block_layout(config, rows * patch, columns * patch)
        start = unpatched(call.noise[None].float(), patch, rows, columns)[0]

        def sampler(forwards: int, solver: str) -> FlowSampler:
            times = grid(forwards, call.shift, solver)
            return FlowSampler(
                start.to(self.model.device), times, solver, lambda x, time: drawn(layout, x, 1 - time, call.markers)
            )

        # The original fills a cache for each branch; those that came out equal are one.
        dtype, alike = self.model.dtype, call.image.same(call.main)
        contexts = {
            MAIN: call.main.context(MAIN, dtype),
            TEXT: call.text.context(TEXT, dtype),
            IMAGE: call.image.context(MAIN if alike else IMAGE, dtype),
        }
        script = [Draw(steering.guidance(patch), call.points - 1, sampler)]
        return Run(script, recipe, self.model.spec, contexts=contexts)

    # -- text ----------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def text(self, module: nn.Module, given: Mapping[str, Any]) -> Tensor | None:
        """Tokens [n, 1], the start token among them, or None where only the original can compute them."""
        self.refresh(module)
        try:
            start = given["packed_start_tokens"]
            if len(start) != 1:
                raise NotHere("several texts are packed into one call, which stops with the first")
            held = Held.of(given["past_key_values"], given["key_values_lens"], given["packed_query_position_ids"])
            limit = int(given["max_length"]) - 1
        except NotHere as why:
            self._leave(str(why))
            return None
        except (KeyError, TypeError, IndexError) as why:
            self._leave(f"the call cannot be understood ({why})")
            return None
        stop = given.get("end_token_id")
        context: Context = held.context(MAIN, self.model.dtype)
        choose: Callable[[Tensor], Tensor] | None = None
        if given.get("do_sample"):
            choose = partial(sampled_token, temperature=given.get("temperature", 1.0), top_k=None)
        with self._lock:
            # What stands before the text is the original's: it cannot teach a recipe anything of pictures.
            lacking = "understanding" in self.prepared.lacking("understanding")
            executor, recipe = (self._executor(), exact()) if lacking else (self._ready("understanding"), self.recipe)
        ids: list[int] = []
        if limit > 0:
            stops = frozenset() if stop is None else frozenset((int(stop),))
            script: list[Action] = [Append((MAIN,), (words(start.tolist()),)), Decode(MAIN, stops, limit)]
            run = Run(script, recipe, self.model.spec, choose=choose, contexts={MAIN: context})
            with torch.inference_mode():
                complete(executor, [run])
            self.trace, ids = run.trace, run.text
        return torch.tensor([*start.tolist(), *ids], device=start.device)[:, None]

    # -- inside ------------------------------------------------------------------------------------------------
    def refresh(self, module: nn.Module) -> None:
        """Follow the instance: after a cast, a move or a new checkpoint, point at its tensors and prepare anew."""
        with self._lock:
            now = stamp(module)
            if now == self._stamp:
                return
            share(self.model, module)
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


class BagelMethods(BoundMethods):
    """Calls on one instance, answered by a `DropIn`, or by the instance's own class where that cannot."""

    METHODS = ("generate_image", "generate_text")

    def __init__(self, module: nn.Module, behind: DropIn) -> None:
        super().__init__(module)
        self.behind = behind

    def generate_image(self, **given: Any) -> Any:
        """The latent tokens of each image."""
        tokens = self.behind.latents(self.module, given)
        return self.original("generate_image")(**given) if tokens is None else (tokens,)

    def generate_text(self, **given: Any) -> Any:
        """Tokens [n, texts]."""
        tokens = self.behind.text(self.module, given)
        return self.original("generate_text")(**given) if tokens is None else tokens
