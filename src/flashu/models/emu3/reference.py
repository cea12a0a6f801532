"""The original program as an engine, with all the work its code does.

Drawing: two passes for every token, those included whose id is known; logits over the whole vocabulary, a log-softmax
of both branches, and a list of the allowed ids turned into a mask. Answering: one pass for each token. Caches are
copied to grow; eager.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count, takewhile
from typing import Any

import torch
from torch import Tensor

from flashu.errors import FlashUError, PromptError
from flashu.inference.actions import AnswerRequest, DrawRequest
from flashu.inference.engine import Answer, Engine, Generation
from flashu.inference.run import StepTrace
from flashu.inference.samplers.noise import Noise
from flashu.models.emu3 import naive
from flashu.models.emu3.layout import Emu3Layout
from flashu.models.emu3.model import Emu3
from flashu.models.emu3.processor import Processor
from flashu.models.pictures import Picture
from flashu.plan import Plan, Step, Task, cost
from flashu.plan.recipe import Recipe
from flashu.plan.table import Forward, PlanTable

NAME = "original"
MARKS = 3  # tokens after the codes: end of image, end of its block, end of the row


def nothing(index: int) -> None:
    """The default of ``before``."""


class Rows:
    """One branch's rows, left-padded, and their cache."""

    def __init__(self, model: Emu3, rows: Sequence[Sequence[int]], part: naive.Part) -> None:
        width, pad = max(map(len, rows)), model.config.ids.pad
        self.model, self.part = model, part
        self.new = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], device=model.device)
        real = [[False] * (width - len(row)) + [True] * len(row) for row in rows]
        self.cache = naive.Cache(torch.tensor(real, device=model.device))

    def logits(self) -> Tensor:
        """Of the last token of each row [B, V], after a pass over what is new. Every new token has logits."""
        return naive.forward(self.model, self.new, self.cache, self.part)[:, -1]

    def add(self, ids: Tensor) -> None:
        """The next token of each row [B]."""
        self.new = ids[:, None]
        self.cache.mask = torch.cat((self.cache.mask, torch.ones_like(self.new, dtype=torch.bool)), dim=1)


@torch.inference_mode()
def draw(
    main: Rows,
    uncond: Rows | None,
    scale: float,
    allowed: Sequence[naive.Allowed],
    top_k: int,
    noises: Sequence[Any],
    before: Callable[[int], None] = nothing,
) -> Tensor:
    """Tokens [B, n] of images, the three after their codes included. ``noises``: of each row, asked for exponential
    numbers of the codes at every token that is not known; ``top_k`` 1 = greedy."""
    passes, drawn = count(), []
    last = max(a.height * (a.width + 1) for a in allowed) + MARKS
    for offset in range(1, last + 1):
        before(next(passes))
        conditional, unconditional = main.logits(), None
        if uncond is not None:
            before(next(passes))
            unconditional = uncond.logits()
        token = chosen(conditional, unconditional, scale, [a.at(offset) for a in allowed], top_k, noises)
        drawn.append(token)
        for rows in (main, uncond):
            if rows is not None:
                rows.add(token)
    return torch.stack(drawn, dim=1)


def chosen(
    conditional: Tensor,
    unconditional: Tensor | None,
    scale: float,
    allowed: Sequence[Sequence[int]],
    top_k: int,
    noises: Sequence[Any],
) -> Tensor:
    """The next token of each row [B]."""
    scores = naive.scores(conditional, unconditional, scale, allowed, top_k)
    if top_k == 1:
        return scores.argmax(-1)
    p, noise = scores.softmax(-1), torch.ones_like(scores)
    for row, (ids, own) in enumerate(zip(allowed, noises, strict=True)):
        if len(ids) > 1:
            noise[row, ids[0] : ids[-1] + 1] = own.exponential(len(ids)).to(noise.device)
    return (p / noise).argmax(-1)


@torch.inference_mode()
def answer(rows: Rows, forwards: int, before: Callable[[int], None] = nothing) -> Iterator[Tensor]:
    """Greedy tokens [B], one after another."""
    for index in range(forwards):
        before(index)
        token = rows.logits().argmax(-1)
        yield token
        rows.add(token)


class Reference(Engine):
    """`generate` and `answer` by the original's loops, exact recipe only. The rest is for timing; see
    `models.family.TimedReference`."""

    def __init__(self, model: Emu3, processor: Processor) -> None:
        super().__init__(model, processor, Recipe(name=NAME))
        self.model: Emu3 = model
        self.layout: Emu3Layout

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
        planned = self.explain(guidance=guidance, height=height, width=width).forwards
        trace = [StepTrace(f.step, f.plan, f.rows, f.tokens, f.past) for f in planned]
        return Generation(self.decode(codes) if decode else [], codes, [prompts], [seed], [trace])

    def answer(  # type: ignore[override]
        self, images: Picture, questions: str, *, max_new_tokens: int | None = None
    ) -> Answer:
        """One greedy answer to one question about one image."""
        if not isinstance(questions, str) or isinstance(images, list | tuple):
            raise FlashUError("the original program answers one question about one image at a time")
        request = AnswerRequest(questions, (images,), max_new_tokens)
        budget = max_new_tokens or self.layout.defaults.max_new_tokens
        (row,) = self._questions([request])
        text = self.processor.text
        loop = (int(token) for token in answer(Rows(self.model, [row], naive.unnamed), budget))
        ids = list(takewhile(lambda token: token != text.ids.eos, loop))
        trace = []
        for index in range(min(len(ids) + 1, budget)):
            step = Step("understanding", "token" if index else "prefill", index, budget)
            trace.append(StepTrace(step, Plan(), 1, 1 if index else len(row), len(row) + index - 1 if index else 0))
        return Answer(text.decode(ids), ids, trace)

    # -- for timing ----------------------------------------------------------------------------------------------
    def forwards(self, steps: int) -> int:
        return steps

    def latents(
        self,
        requests: Sequence[DrawRequest],
        only: Sequence[int] | None = None,
        before: Callable[[int], None] = nothing,
        part: naive.Part = naive.unnamed,
    ) -> Tensor:
        """Codes [B, h, w] of requests that differ in prompt and seed. ``only`` the passes named there, each behind as
        many tokens as there are by then; what comes of them is no image."""
        model, processor, text, first = self.model, self.processor, self.processor.text, requests[0]
        height, width = self.layout.code_size(first.height, first.width)
        scale = self.layout.defaults.guidance if first.guidance is None else first.guidance
        opening = text.opening(height, width)
        prompts = [[*text.prompt(request.prompt), *opening] for request in requests]
        negative = [*text.negative(), *(opening if processor.negative_image else ())]
        allowed = naive.Allowed(text.ids, model.config.codes, height, width)
        noises = [Noise(request.seed) for request in requests]
        guided = scale not in (0, 1)
        if only is not None:
            self._passes(only, prompts, negative if guided else None, allowed, noises, before, part)
            return torch.zeros(len(requests), height, width, dtype=torch.long)
        main = Rows(model, prompts, part)
        uncond = Rows(model, [negative] * len(requests), part) if guided else None
        drawn = draw(main, uncond, scale, [allowed] * len(requests), processor.top_k, noises, before)
        return drawn[:, :-MARKS].unflatten(1, (height, width + 1))[..., :-1] - text.ids.first

    @torch.inference_mode()
    def _passes(
        self,
        only: Sequence[int],
        prompts: Sequence[Sequence[int]],
        negative: Sequence[int] | None,
        allowed: naive.Allowed,
        noises: Sequence[Noise],
        before: Callable[[int], None],
        part: naive.Part,
    ) -> None:
        """Single passes of a drawing, each with the choice of a token that follows the last of its branches."""
        model, branches = self.model, 2 if negative is not None else 1
        for index in only:
            offset, branch = divmod(index, branches)
            rows = Rows(model, prompts if branch == 0 else [negative or []] * len(prompts), part)
            if offset:
                length = rows.new.shape[1] + offset
                rows.new = rows.new[:, -1:]
                rows.cache = naive.Cache.of_length(model, len(prompts), length - 1)
                rows.cache.mask = rows.cache.mask.new_ones(len(prompts), length)
            before(index)
            logits = rows.logits()
            if branch == branches - 1:
                scale, known = self.layout.defaults.guidance, [allowed.at(offset + 1)] * len(prompts)
                chosen(logits, logits if branches > 1 else None, scale, known, self.processor.top_k, noises)

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
            forwards = requests[0].max_new_tokens or self.layout.defaults.max_new_tokens
            return torch.stack(list(answer(Rows(self.model, rows, part), forwards, before)), dim=1)
        given = []
        for index in only:
            asked = Rows(self.model, rows, part)
            if index:
                length = asked.new.shape[1] + index
                asked.new = asked.new[:, -1:]
                asked.cache = naive.Cache.of_length(self.model, len(rows), length - 1)
                asked.cache.mask = asked.cache.mask.new_ones(len(rows), length)
            before(index)
            given.append(asked.logits().argmax(-1))
        return torch.stack(given, dim=1)

    def explain(self, task: Task = "generation", **settings: Any) -> PlanTable:
        """What the original computes, pass by pass: one branch each, logits over the whole vocabulary."""
        table, spec = super().explain(task, **settings), self.model.spec
        if task == "understanding":
            first = table.forwards[0]
            more = first.tokens - 1  # every token of the prefill has logits
            whole = replace(first, flops=first.flops + spec.logits.flops(more))
            return replace(table, forwards=(whole, *table.forwards[1:]))
        height, width = self.layout.code_size(settings.get("height"), settings.get("width"))
        scale = settings.get("guidance")
        guided = (self.layout.defaults.guidance if scale is None else scale) not in (0, 1)
        total = (height * (width + 1) + MARKS) * (1 + guided)
        prompt, forwards = table.forwards[0].tokens, []
        for index in range(total):
            offset = index // (1 + guided)
            step = Step("generation", "token" if offset else "prefill", index, total)
            tokens, past = (1, prompt + offset - 1) if offset else (prompt, 0)
            flops = cost.decoder(spec, Plan().layers, tokens, past, {}, keep=True) + spec.logits.flops(tokens)
            forwards.append(Forward(step, Plan(), 1, tokens, past, flops, spec.neurons, None))
        return replace(table, forwards=tuple(forwards), prompts=())

    @torch.inference_mode()
    def _questions(self, requests: Sequence[AnswerRequest], part: naive.Part = naive.unnamed) -> list[list[int]]:
        """The whole rows of questions about images."""
        text = self.processor.text
        with part("VAE"):
            blocks = self.layout.shown(requests)
        return [
            [*text.before(), *(t for image in request.images for t in blocks[id(image)]), *text.question(request.text)]
            for request in requests
        ]
