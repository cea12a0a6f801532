"""What stands behind a patched instance of the original class: its two loops, over contexts that it made itself."""

from __future__ import annotations

import logging
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
from flashu.inference.engine import RecipeSource
from flashu.inference.run import Run, StepTrace, complete
from flashu.inference.samplers.flow import FlowSampler
from flashu.interfaces.bound import BoundMethods
from flashu.interfaces.instance import PatchedInstance
from flashu.models.adopt import sampled_token
from flashu.models.bagel.dropin.adopt import adopted, share
from flashu.models.bagel.dropin.calls import DrawCall, Held, NotHere
from flashu.models.bagel.guidance import Steering
from flashu.models.bagel.layout import grid
from flashu.models.bagel.model import Bagel
from flashu.models.bagel.rows import block_layout, drawn, words
from flashu.models.bagel.spec import IMAGE, TEXT
from flashu.models.bagel.vision import patches, unpatched
from flashu.plan import MAIN
from flashu.plan.recipe import Recipe, exact
from flashu.runtime.context import Context

log = logging.getLogger("flashu")


class DropIn(PatchedInstance):
    """See `PatchedInstance`. Its contexts are the caller's own."""

    model: Bagel

    def __init__(self, module: nn.Module, recipe: RecipeSource, calibration: Calibration | None = None) -> None:
        super().__init__(adopted(module), module, recipe, calibration)
        self.trace: list[StepTrace] = []
        """One entry per forward of the latest image, or of the latest text."""

    def share(self, module: nn.Module) -> None:
        share(self.model, module)

    def bind(self, module: nn.Module) -> None:
        """Answer the instance's calls from now on."""
        BagelMethods(module, self).bind()

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
