"""The original program as an engine: one request at a time, with all the work its code does.

Drawing: three passes a step where guidance is on, the branch without pictures included where there are none. Thinking:
the thought is decoded on a copy of the context, then goes through once more. No static cache, eager.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flashu.errors import FlashUError, PromptError
from flashu.inference.actions import AnswerRequest, DrawRequest
from flashu.inference.engine import Answer, Engine, Generation
from flashu.inference.run import StepTrace
from flashu.inference.samplers.noise import Noise
from flashu.models.bagel import naive
from flashu.models.bagel.layout import THOUGHT, BagelLayout, Viewed, thought_limit
from flashu.models.bagel.model import Bagel
from flashu.models.bagel.processor import Processor
from flashu.models.bagel.vision import unpatched
from flashu.models.pictures import Picture
from flashu.plan import Plan, Step, Task
from flashu.plan.recipe import Recipe
from flashu.plan.table import PlanTable

NAME = "original"


def nothing(index: int) -> None:
    """The default of ``before``."""


class Reference(Engine):
    """One image or answer at a time, as the released program computes it; see `TimedReference`."""

    layout: BagelLayout
    model: Bagel

    def __init__(self, model: Bagel, processor: Processor) -> None:
        super().__init__(model, processor, Recipe(name=NAME))

    def generate(  # type: ignore[override]
        self,
        prompts: str,
        *,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        shift: float | None = None,
        height: int | None = None,
        width: int | None = None,
        think: bool = False,
        decode: bool = True,
        **own: Any,
    ) -> Generation:
        """One image of one prompt."""
        request = DrawRequest(
            prompts, seed, steps, guidance, shift, height, width, think=think, own=self.own_settings(own)
        )
        return self._generation(request, decode)

    def edit(  # type: ignore[override]
        self,
        images: Picture,
        prompts: str,
        *,
        seed: int = 0,
        steps: int | None = None,
        text_guidance: float | None = None,
        shift: float | None = None,
        think: bool = False,
        decode: bool = True,
        **own: Any,
    ) -> Generation:
        """One edit of one image."""
        request = DrawRequest(
            prompts, seed, steps, text_guidance, shift, images=(images,), think=think, own=self.own_settings(own)
        )
        return self._generation(request, decode)

    def answer(  # type: ignore[override]
        self, images: Picture, questions: str, *, max_new_tokens: int | None = None, think: bool = False
    ) -> Answer:
        """One greedy answer to one question about one image."""
        if not isinstance(questions, str) or isinstance(images, list | tuple):
            raise FlashUError("the original program answers one question about one image at a time")
        text = self.processor.text
        budget = max_new_tokens or (THOUGHT if think else self.layout.defaults.max_new_tokens)
        with torch.inference_mode():
            cache = self._asked_about(AnswerRequest(questions, (images,), think=think))
            ids: list[int] = []
            for token in naive.decoded(self.model, cache, text.ids.bos, budget):
                if token == text.ids.eos:
                    break
                ids.append(token)
        kinds = ["prefill", *["token"] * min(len(ids), budget - 1)]
        steps = [Step("understanding", kind, i, budget) for i, kind in enumerate(kinds)]  # type: ignore[arg-type]
        trace = [StepTrace(step, Plan(), 1, 1, 0) for step in steps]
        return Answer(self.layout.text(ids), ids, trace)

    # -- drawing -------------------------------------------------------------------------------------------------
    def _generation(self, request: DrawRequest, decode: bool) -> Generation:
        if not isinstance(request.prompt, str) or not isinstance(request.seed, int):
            raise PromptError("the original program draws one prompt with one seed at a time")
        latents, thought, passes = self._drawn_one(request)
        total = len(passes)
        steps = [Step("generation", "block", i, total) for i in range(total)]
        tokens = latents.shape[-2] * latents.shape[-1] // self.model.config.latent_patch_size**2 + 2
        trace = [StepTrace(step, Plan(), rows, tokens, 0) for step, rows in zip(steps, passes, strict=True)]
        images = self.decode(latents[None]) if decode and self.layout.draws else []
        thoughts = [self.layout.text(thought)] if request.think else []
        return Generation(images, latents[None], [request.prompt], [request.seed], [trace], thoughts)

    @torch.inference_mode()
    def _drawn_one(
        self,
        request: DrawRequest,
        only: Sequence[int] | None = None,
        before: Callable[[int], None] = nothing,
        part: naive.Part = naive.unnamed,
    ) -> tuple[Tensor, list[int], list[int]]:
        """Latents [z, h, w], the thought's ids, and the passes of each step."""
        model, layout, config = self.model, self.layout, self.model.config
        noise = Noise(request.seed)
        with part("VAE"):
            inputs: list[str | Viewed] = [layout.viewed(image, noise) for image in request.images]
        size = inputs[0].latents.shape[-2:] if inputs else None  # type: ignore[union-attr]
        inputs.append(request.prompt)
        if size is None:
            defaults = layout.defaults
            size = layout.latent_size(request.height or defaults.height, request.width or defaults.width)
        main, without_text, without_image, thought = self._contexts(inputs, request, part)
        how = layout._steering(request, bool(request.images))
        rows, columns = (side // config.latent_patch_size for side in size)
        x = noise.normal(rows * columns, config.token_size).to(model.device)
        points = (request.steps or layout.defaults.steps) + 1
        u = torch.linspace(1, 0, points)
        shift = layout.defaults.shift if request.shift is None else request.shift
        times = shift * u / (1 + (shift - 1) * u)
        low, high = how.interval
        passes = []
        for index in range(points - 1) if only is None else only:
            before(index)
            t = times[index]
            count = 1

            def velocity(cache: naive.Cache, x: Tensor = x, t: Tensor = t) -> Tensor:
                return naive.velocity(model, x, float(t), (rows, columns), cache, layout.markers, part)

            main_v, text_v, image_v = velocity(main), None, None
            if bool(t > low) and bool(t <= high):
                if how.text > 1:
                    text_v, count = velocity(without_text), count + 1
                if how.image > 1:
                    image_v, count = velocity(without_image), count + 1
            v = naive.guided(main_v, text_v, image_v, (how.text, how.image), how.renorm, how.renorm_min)
            x = x - v.to(x.dtype) * (t - times[index + 1]).to(x.device)
            passes.append(count)
        return unpatched(x[None], config.latent_patch_size, rows, columns)[0], thought, passes

    def _contexts(
        self, inputs: Sequence[str | Viewed], request: DrawRequest, part: naive.Part
    ) -> tuple[naive.Cache, naive.Cache, naive.Cache, list[int]]:
        """Main, without the text, without the pictures; and the thought."""
        model, text, markers = self.model, self.processor.text, self.layout.markers
        main, without_text, without_image = naive.Cache(), naive.Cache(), naive.Cache()
        thought: list[int] = []
        if request.think:
            ids = text.block("system prompt", self.layout._thinking.draw)
            for cache in (main, without_image):
                naive.add_text(model, cache, ids, part)
        for one in inputs:
            if isinstance(one, str):
                without_text = main.copy()
                for cache in (main, without_image):
                    naive.add_text(model, cache, text.block("prompt", one), part)
            else:
                assert one.latents is not None
                naive.add_latents(model, main, one.latents, markers, part)
                naive.add_seen(model, main, one.pixels, markers, part)
                without_text = main.copy()
        if request.think:
            limit = thought_limit(request)
            for token in naive.decoded(model, main.copy(), text.ids.bos, limit, part):
                if token == text.ids.eos:
                    break
                thought.append(token)
            naive.add_text(model, main, [text.ids.bos, *thought, text.ids.eos], part)
        return main, without_text, without_image, thought

    def _asked_about(self, request: AnswerRequest, part: naive.Part = naive.unnamed) -> naive.Cache:
        model, text, cache = self.model, self.processor.text, naive.Cache()
        if request.think:
            naive.add_text(model, cache, text.block("system prompt", self.layout._thinking.answer), part)
        for image in request.images:
            with part("features"):
                _, pixels = self.layout._pixels(image)  # type: ignore[arg-type]
            naive.add_seen(model, cache, pixels, self.layout.markers, part)
        naive.add_text(model, cache, text.block("question", request.text), part)
        return cache

    # -- for timing ----------------------------------------------------------------------------------------------
    def forwards(self, steps: int) -> int:
        return steps

    def latents(
        self,
        requests: Sequence[Any],
        only: Sequence[int] | None = None,
        before: Callable[[int], None] = nothing,
        part: naive.Part = naive.unnamed,
    ) -> Tensor:
        """Latents [B, z, h, w] of requests, one after another; ``before`` each step, which is up to three passes."""
        return torch.stack([self._drawn_one(request, only, before, part)[0] for request in requests])

    @torch.inference_mode()
    def tokens(
        self,
        requests: Sequence[Any],
        only: Sequence[int] | None = None,
        before: Callable[[int], None] = nothing,
        part: naive.Part = naive.unnamed,
    ) -> Tensor:
        """Greedy tokens [B, n], however they might stop. ``only`` the forwards named, each behind as many tokens as
        there would be by then, whichever these are."""
        given = []
        for request in requests:
            bos = self.processor.text.ids.bos
            forwards = range(request.max_new_tokens or self.layout.defaults.max_new_tokens) if only is None else only
            before(0)
            cache = self._asked_about(request, part)
            row: list[int] = []
            prompt = cache.position
            for index in forwards:
                if index:
                    before(index)
                if only is not None:
                    cache.lengthen(index - (cache.position - prompt))
                row.append(next(naive.decoded(self.model, cache, row[-1] if row else bos, 1, part)))
            given.append(row)
        return torch.tensor(given)

    def explain(self, task: Task = "generation", **settings: Any) -> PlanTable:
        """What the original computes: a pass for every guidance branch, equal or not."""
        table = super().explain(task, **settings)
        if task != "generation":
            return table
        forwards = []
        for forward in table.forwards:
            rows = len(forward.plan.branches)
            flops = forward.flops * rows // max(forward.rows, 1)
            forwards.append(replace(forward, rows=rows, flops=flops))
        return replace(table, forwards=tuple(forwards))
