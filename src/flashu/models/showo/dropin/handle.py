"""What stands behind a patched instance of the original class."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from flashu.errors import RecipeError
from flashu.inference.actions import Action, Append, Decode, Draw
from flashu.inference.calibrate.calibration import Calibration
from flashu.inference.calibrate.gather import UnderstandingWatch, observe
from flashu.inference.calibrate.importance import FFNNorms
from flashu.inference.engine import RecipeSource
from flashu.inference.run import Run, StepTrace, complete
from flashu.inference.samplers.masked import MaskedSampler, Numbers, cosine
from flashu.inference.samplers.noise import Noise
from flashu.interfaces.bound import BoundMethods
from flashu.interfaces.instance import PatchedInstance
from flashu.models.adopt import attribute, sampled_token
from flashu.models.showo.dropin.adopt import adopted, share
from flashu.models.showo.dropin.calls import CallNoise, DrawCall, layout_of, stripped
from flashu.models.showo.layout import PADDED, UNCOND, block, words
from flashu.models.showo.model import ShowO
from flashu.models.showo.text import SpecialIds
from flashu.plan import MAIN, Guidance
from flashu.plan.recipe import Recipe, exact
from flashu.runtime.layout import Segment

log = logging.getLogger("flashu")


class DropIn(PatchedInstance):
    """See `PatchedInstance`."""

    model: ShowO

    def __init__(self, module: nn.Module, recipe: RecipeSource, calibration: Calibration | None = None) -> None:
        super().__init__(adopted(module), module, recipe, calibration)
        self.trace: list[StepTrace] = []
        """One entry per forward of the first of the latest images, or of the latest answer."""

    def check(self, recipe: Recipe) -> None:
        super().check(recipe)
        if recipe.padded:
            raise RecipeError(PADDED)

    def share(self, module: nn.Module) -> None:
        share(self.model, module)

    def bind(self, module: nn.Module) -> None:
        """Answer the instance's calls from now on."""
        ShowOMethods(module, self).bind()

    # -- drawing -----------------------------------------------------------------------------------------------
    @torch.no_grad()
    def codes(self, module: nn.Module, call: DrawCall) -> Tensor | None:
        """What `t2i_generate` returns, codes [B, N], or None where only the original can compute it. As in the
        original, the image in the caller's rows is written over."""
        self.refresh(module)
        if why := call.unlike_any_drawing(self.model.config):
            self._leave(why)
            return None
        with self._lock:
            if "generation" in self.prepared.lacking("generation"):
                log.info("calibrating on the first images")
                self._learn_from_drawing(call)
            executor = self._ready("generation")
        noise = CallNoise(len(call.ids), call.generator, self.model.device)
        samplers: list[MaskedSampler] = []
        rows = range(len(call.ids))
        scripts = [self._drawing(call, n, noise.row(n), samplers) for n in rows]
        runs = [Run(script, self.recipe, self.model.spec) for script in scripts]
        complete(executor, runs)
        self.trace = runs[0].trace
        call.first.copy_(torch.stack([sampler.ids for sampler in samplers]))
        return torch.stack([run.drawn[-1] for run in runs]).to(call.ids.device)

    def _drawing(
        self, call: DrawCall, row: int, noise: Numbers, made: list[MaskedSampler] | None = None
    ) -> list[Action]:
        config = self.model.config
        marks = SpecialIds.behind(config.text_tokens, -1, -1)

        def sampler(forwards: int, solver: str) -> MaskedSampler:
            own = MaskedSampler(
                call.first[row].clone(),
                forwards,
                config.codes,
                config.mask,
                partial(block, marks),
                noise,
                call.temperature,
                "compounding",
                call.share,
            )
            if made is not None:
                made.append(own)
            return own

        actions: list[Action] = [Append((MAIN,), (words(stripped(call.prompts[row], marks.pad)),))]
        scales = {}
        if call.null is not None:
            actions.append(Append((UNCOND,), (words(stripped(call.null[row], marks.pad)),)))
            scales = {UNCOND: 1 + call.guidance}
        return [*actions, Draw(Guidance(scales), call.forwards, sampler)]

    def _learn_from_drawing(self, call: DrawCall) -> None:
        norms = FFNNorms()
        with torch.inference_mode():
            for row in range(len(call.ids)):
                observe(self.model, Run(self._drawing(call, row, Noise(row)), exact(), self.model.spec), norms)
        about = {"source": f"the caller's script, drawing {len(call.ids)} images"}
        self.prepared.learn(self.model, "generation", norms.scores(self.model), about)

    # -- seeing ------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def answer(
        self, module: nn.Module, row: Tensor, mask: Any, limit: int, stop: int | None, **sampling: Any
    ) -> list[int] | None:
        """Tokens after a row of ids [1, S] or embedded [1, S, h], the stopping one among them, or None where only the
        original can compute them."""
        self.refresh(module)
        ids = None if row.is_floating_point() else row
        layout = layout_of(mask, ids, self.model.config, row.shape[1]) if len(row) == 1 else None
        if layout is None:
            self._leave("there is more than one row, or a mask that is not causal with one part that all see")
            return None
        content = row[0] if ids is not None else row[0].to(self.model.dtype)
        script: list[Action] = [
            Append((MAIN,), (Segment(content, layout, row.shape[1]),)),
            Decode(MAIN, frozenset(), limit),
        ]
        with self._lock:
            lacking = "understanding" in self.prepared.lacking("understanding")
            if lacking and not bool(layout.visual.any()):
                log.info("text alone does not calibrate: computed exactly until a question about an image came")
                executor, recipe = self._executor(), exact()
            else:
                if lacking:
                    log.info("calibrating on the first question")
                    self._learn_from_question([script[0], Decode(MAIN, frozenset(), max(limit, 1))])
                executor, recipe = self._ready("understanding"), self.recipe
        run = Run(script, recipe, self.model.spec, choose=partial(sampled_token, **sampling))
        with torch.inference_mode():
            while not run.done and not (run.text and run.text[-1] == stop):
                run.step(executor)
        run.close()
        self.trace = run.trace
        return run.text

    def _learn_from_question(self, script: list[Action]) -> None:
        watch = UnderstandingWatch(self.model)
        with torch.inference_mode():
            observe(self.model, Run(script, exact(), self.model.spec), watch)
        about = {"source": "the caller's script, one question"}
        self.prepared.learn(
            self.model, "understanding", watch.norms.scores(self.model), about, watch.attended.correlation()
        )


class ShowOMethods(BoundMethods):
    """Calls on one instance, answered by a `DropIn`, or by the instance's own class where that cannot."""

    METHODS = ("t2i_generate", "mmu_generate")

    def __init__(self, module: nn.Module, behind: DropIn) -> None:
        super().__init__(module)
        self.behind = behind

    def t2i_generate(
        self,
        input_ids: Any = None,
        uncond_input_ids: Any = None,
        attention_mask: Any = None,
        temperature: float = 1.0,
        timesteps: int = 18,
        guidance_scale: float = 0,
        noise_schedule: Any = None,
        generator: torch.Generator | None = None,
        config: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Codes [B, N] of images; the caller's rows hold the image as it last went in."""
        given = {name: value for name, value in locals().items() if name not in ("self", "kwargs")}
        count = attribute(config, "model.showo.num_vq_tokens", None)
        longest = attribute(config, "dataset.preprocessing.max_seq_length", None)
        if isinstance(input_ids, Tensor) and count is not None and longest is not None:
            guided = uncond_input_ids is not None and guidance_scale > 0
            call = DrawCall(
                input_ids,
                uncond_input_ids[:, : longest + 1] if guided else None,
                attention_mask,
                count,
                temperature,
                timesteps,
                guidance_scale,
                cosine if noise_schedule is None else noise_schedule,
                generator,
            )
            codes = self.behind.codes(self.module, call)
            if codes is not None:
                return codes
        if noise_schedule is None:
            del given["noise_schedule"]
        return self.original("t2i_generate")(**given, **kwargs)

    def mmu_generate(
        self,
        idx: Any = None,
        input_embeddings: Any = None,
        attention_mask: Any = None,
        max_new_tokens: int = 100,
        temperature: float = 1.0,
        top_k: int | None = None,
        eot_token: Any = None,
    ) -> Any:
        """Tokens (each a scalar tensor) that answer a row."""
        given = {name: value for name, value in locals().items() if name != "self"}
        row = input_embeddings if attribute(self.module, "config.w_clip_vit", False) else idx
        stop = None if eot_token is None else int(eot_token)
        tokens = None
        if isinstance(row, Tensor):
            sampling = {"temperature": temperature, "top_k": top_k}
            tokens = self.behind.answer(self.module, row, attention_mask, max_new_tokens, stop, **sampling)
        if tokens is not None:
            return [torch.tensor(token, device=row.device) for token in tokens]
        return self.original("mmu_generate")(**given)
