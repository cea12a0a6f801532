"""The original program as an engine: a pass for each token, of both branches in one batch, all rows padded to the
longest. Logits are over the codes while it draws and over the words while it answers. Caches are copied to grow; eager.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from flashu.errors import FlashUError, PromptError
from flashu.inference.actions import AnswerRequest, DrawRequest
from flashu.inference.engine import Answer, Engine, Generation
from flashu.inference.run import StepTrace
from flashu.inference.samplers.noise import Noise
from flashu.models.janus import naive
from flashu.models.janus.layout import JanusLayout, code_side
from flashu.models.janus.model import Janus
from flashu.models.janus.processor import Processor
from flashu.models.pictures import Picture
from flashu.plan import Plan, Step
from flashu.plan.recipe import Recipe

NAME = "original"


def nothing(index: int) -> None:
    """The default of ``before``."""


class Reference(Engine):
    """`generate` and `answer` by the original's loops, exact recipe only. The rest is for timing; see
    `models.family.TimedReference`."""

    def __init__(self, model: Janus, processor: Processor) -> None:
        super().__init__(model, processor, Recipe(name=NAME))
        self.model: Janus = model
        self.layout: JanusLayout

    def generate(  # type: ignore[override]
        self,
        prompts: str,
        *,
        seed: int = 0,
        guidance: float | None = None,
        height: int | None = None,
        width: int | None = None,
        decode: bool = True,
    ) -> Generation:
        """One image of one prompt; the same as `Engine.generate` draws."""
        if not isinstance(prompts, str) or not isinstance(seed, int):
            raise PromptError("the original program draws one prompt with one seed at a time")
        codes = self.latents([DrawRequest(prompts, seed, None, guidance, None, height, width)])
        length = len(self.processor.text.prompt(prompts))
        trace = []
        for n, planned in enumerate(self.explain(guidance=guidance, height=height, width=width).forwards):
            tokens, past = (1, length + n - 1) if n else (length, 0)
            trace.append(StepTrace(planned.step, planned.plan, planned.rows, tokens, past))
        return Generation(self.decode(codes) if decode else [], codes, [prompts], [seed], [trace])

    def answer(  # type: ignore[override]
        self, images: Picture, questions: str, *, max_new_tokens: int | None = None
    ) -> Answer:
        """One greedy answer to one question about one image."""
        if not isinstance(questions, str) or isinstance(images, list | tuple):
            raise FlashUError("the original program answers one question about one image at a time")
        request = AnswerRequest(questions, (images,), max_new_tokens)
        budget = max_new_tokens or self.layout.defaults.max_new_tokens
        rows, stop = self._questions([request], naive.unnamed), self.processor.stop
        length = rows.mask.shape[1]
        ids = list(takewhile(lambda token: token != stop, (int(t) for t in self._answered(rows, budget, nothing))))
        trace = []
        for index in range(min(len(ids) + 1, budget)):
            step = Step("understanding", "token" if index else "prefill", index, budget)
            trace.append(StepTrace(step, Plan(), 1, 1 if index else length, length + index - 1 if index else 0))
        return Answer(self.processor.text.decode(ids), ids, trace)

    # -- for timing ----------------------------------------------------------------------------------------------
    def forwards(self, steps: int) -> int:
        return steps

    @torch.inference_mode()
    def latents(
        self,
        requests: Sequence[DrawRequest],
        only: Sequence[int] | None = None,
        before: Callable[[int], None] = nothing,
        part: naive.Part = naive.unnamed,
    ) -> Tensor:
        """Codes [B, h, w] of requests that differ in prompt and seed. ``only`` the passes named there, each behind as
        many tokens as there are by then; what comes of them is no image."""
        model, text, first = self.model, self.processor.text, requests[0]
        side = code_side(model.config, first.height, first.width)
        scale = self.layout.defaults.guidance if first.guidance is None else first.guidance
        prompts = [text.prompt(request.prompt) for request in requests]
        guided = scale not in (0, 1)
        ids = [*prompts, *(text.negative(prompt) for prompt in prompts)] if guided else prompts
        noises, drawn = [Noise(request.seed) for request in requests], []
        with part("features"):
            opened = [naive.embedded(model, row) for row in ids]
        rows = naive.Rows(model, opened, part)
        for index in range(side**2) if only is None else only:
            before(index)
            if only is not None:
                rows = naive.Rows(model, opened, part)
                if index:
                    rows.behind(index)
            hidden = rows.hidden()
            with part("logits"):
                logits = model.model.generation_head(hidden).float()
            code = chosen(logits, scale if guided else None, self.processor.top_k, noises)
            drawn.append(code)
            with part("features"):
                rows.add(naive.embedded_codes(model, code.repeat(2) if guided else code))
        if only is not None:
            return torch.zeros(len(requests), side, side, dtype=torch.long)
        return torch.stack(drawn, dim=1).unflatten(1, (side, side))

    @torch.inference_mode()
    def tokens(
        self,
        requests: Sequence[AnswerRequest],
        only: Sequence[int] | None = None,
        before: Callable[[int], None] = nothing,
        part: naive.Part = naive.unnamed,
    ) -> Tensor:
        """Greedy tokens [B, n] of questions about one image each, however they might stop. ``only`` the passes named,
        each behind as many tokens as there are by then."""
        rows = self._questions(requests, part)
        if only is None:
            count = requests[0].max_new_tokens or self.layout.defaults.max_new_tokens
            return torch.stack(list(self._answered(rows, count, before)), dim=1)
        opened, given = list(rows.new), []
        for index in only:
            asked = naive.Rows(self.model, opened, part)
            if index:
                asked.behind(index)
            before(index)
            given.append(self._word(asked))
        return torch.stack(given, dim=1)

    # -- inside --------------------------------------------------------------------------------------------------
    @torch.inference_mode()
    def _answered(self, rows: naive.Rows, forwards: int, before: Callable[[int], None]) -> Iterator[Tensor]:
        """Greedy tokens [B], one after another."""
        for index in range(forwards):
            before(index)
            token = self._word(rows)
            yield token
            rows.add(self.model.decoder.embed_tokens(token))

    def _word(self, rows: naive.Rows) -> Tensor:
        hidden = rows.hidden()
        with rows.part("logits"):
            return self.model.lm_head(hidden).argmax(-1)

    @torch.inference_mode()
    def _questions(self, requests: Sequence[AnswerRequest], part: naive.Part) -> naive.Rows:
        """The rows of questions about images; every picture goes through the tower for every row."""
        model, rows = self.model, []
        for request in requests:
            with part("features"):
                pixels = torch.cat([self.processor.pixels(image) for image in request.images])
                seen = model.embed_pixels(pixels.to(model.device))
            first, *rest = self.processor.text.question_parts(request.text, len(request.images))
            pieces = [naive.embedded(model, first)]
            for patches, part_ids in zip(seen, rest, strict=True):
                pieces += [patches, naive.embedded(model, part_ids)]
            rows.append(torch.cat(pieces))
        return naive.Rows(model, rows, part)


def chosen(logits: Tensor, scale: float | None, top_k: int, noises: Sequence[Any]) -> Tensor:
    """Logits [B or 2B, codes], the guidance branch's behind the others -> codes [B]. ``top_k`` 1 = greedy, 0 = all."""
    if scale is not None:
        conditional, unconditional = logits.chunk(2)
        logits = unconditional + scale * (conditional - unconditional)
    if top_k == 1:
        return logits.argmax(-1)
    if 1 < top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
    noise = torch.stack([own.exponential(logits.shape[-1]) for own in noises])
    return (logits.softmax(-1) / noise.to(logits.device)).argmax(-1)
