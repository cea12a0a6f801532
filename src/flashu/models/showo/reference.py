"""The original program as an engine: one request at a time, with all the work its code does.

Drawing: rows left-padded to full length, both guidance rows in every forward, logits of the whole vocabulary at every
position. Answering: the whole row again for every token, its mask grown by a row and a column. No cache, eager.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from flashu.errors import FlashUError, PromptError
from flashu.inference.actions import AnswerRequest, DrawRequest, Known
from flashu.inference.arguments import known_of
from flashu.inference.engine import Answer, Engine, Generation
from flashu.inference.run import StepTrace
from flashu.inference.samplers.masked import MaskedSampler
from flashu.inference.samplers.noise import Noise
from flashu.models.pictures import Picture
from flashu.models.showo import naive
from flashu.models.showo.layout import SCHEDULES, ShowOLayout
from flashu.models.showo.model import ShowO
from flashu.models.showo.processor import Processor
from flashu.plan import Plan, Step, Task, cost
from flashu.plan.recipe import Recipe
from flashu.plan.table import PlanTable
from flashu.runtime.layout import Segment, visible

NAME = "original"


def nothing(index: int) -> None:
    """The default of ``before``."""


@torch.inference_mode()
def draw(
    model: ShowO,
    text: Tensor,
    mask: Tensor,
    samplers: Sequence[MaskedSampler],
    marks: tuple[int, int],
    guidance: float,
    forwards: Sequence[int],
    before: Callable[[int], None] = nothing,
    part: naive.Part = naive.unnamed,
) -> Tensor:
    """Codes [B, N] after the ``forwards`` named, in which the samplers go on.

    ``text`` [R, T]: padded prompts, conditional then (under guidance) unconditional; ``mask``: of whole rows, additive;
    ``marks``: soi and eoi. ``before``: called with the index of each forward; ``part``: see `naive.forward`.
    """
    soi, eoi = (torch.full((len(text), 1), mark, device=model.device) for mark in marks)
    low, high = model.config.codes
    for index in forwards:
        before(index)
        ids = torch.stack([sampler.ids for sampler in samplers]).to(model.device)
        rows = torch.cat((text, soi, ids.repeat(len(text) // len(ids), 1), eoi), dim=1)
        logits = naive.forward(model, rows, mask, part)
        if guidance > 0:
            conditional, unconditional = logits.chunk(2)
            logits = (1 + guidance) * conditional - guidance * unconditional
        logits = logits[:, text.shape[1] + 1 : -1, low:high]
        for sampler, own in zip(samplers, logits, strict=True):
            sampler.advance(own, index)
    return torch.stack([sampler.state for sampler in samplers])


@torch.inference_mode()
def answer(model: ShowO, x: Tensor, mask: Tensor, forwards: int, part: naive.Part = naive.unnamed) -> Iterator[Tensor]:
    """Greedy tokens [B], one after another, of embedded rows x [B, S, h] with bool mask [B, 1, S, S]."""
    grown = naive.additive(mask, model.dtype)
    for _ in range(forwards):
        token = naive.forward(model, x, grown, part)[:, -1].argmax(-1)
        yield token
        x = torch.cat((x, model.embed_tokens(token[:, None])), dim=1)
        grown = with_one_more(grown)


def with_one_more(mask: Tensor) -> Tensor:
    """[B, 1, S, S] -> [B, 1, S+1, S+1]: the new token sees what the last one saw, and itself; nobody sees it."""
    below = torch.cat((mask, mask[:, :, -1:]), dim=2)
    beside = torch.full_like(below[..., :1], torch.finfo(mask.dtype).min)
    beside[:, :, -1] = 0
    return torch.cat((below, beside), dim=3)


class Reference(Engine):
    """`generate` and `answer` of one item at a time by the original's loops, exact recipe only. The rest is for timing;
    see `models.family.TimedReference`."""

    def __init__(self, model: ShowO, processor: Processor) -> None:
        super().__init__(model, processor, Recipe(name=NAME))
        self.model: ShowO = model
        self.layout: ShowOLayout

    def generate(  # type: ignore[override]
        self,
        prompts: str,
        *,
        image: Picture | None = None,
        mask: Picture | None = None,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        height: int | None = None,
        width: int | None = None,
        decode: bool = True,
    ) -> Generation:
        """One image of one prompt, drawn with the noise that `Engine.generate` draws."""
        if not isinstance(prompts, str) or not isinstance(seed, int):
            raise PromptError("the original program draws one prompt with one seed at a time")
        (known,) = known_of(image, mask, 1)
        request = DrawRequest(prompts, seed, steps, guidance, None, height, width, known=known)
        codes = self.latents([request])
        planned = self.explain(steps=steps, guidance=guidance, height=height, width=width).forwards
        trace = [StepTrace(forward.step, forward.plan, forward.rows, forward.tokens, 0) for forward in planned]
        return Generation(self.decode(codes) if decode and self.layout.draws else [], codes, [prompts], [seed], [trace])

    def answer(  # type: ignore[override]
        self, images: Picture, questions: str, *, max_new_tokens: int | None = None
    ) -> Answer:
        """One greedy answer to one question about one image."""
        if not isinstance(questions, str) or isinstance(images, list | tuple):
            raise FlashUError("the original program answers one question about one image at a time")
        budget = max_new_tokens or self.layout.defaults.max_new_tokens
        x, mask = self._questions([AnswerRequest(questions, (images,), max_new_tokens)])
        loop = (int(token) for token in answer(self.model, x, mask, budget))
        ids = list(takewhile(lambda token: token != self.processor.stop, loop))
        count = min(len(ids) + 1, budget)
        steps = [Step("understanding", "token" if i else "prefill", i, budget) for i in range(count)]
        trace = [StepTrace(step, Plan(), 1, x.shape[1] + step.index, 0) for step in steps]
        return Answer(self.layout.text(ids), ids, trace)

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
        """Codes [B, N] of requests that differ in prompt, seed and what is known. ``only`` the forwards named there:
        all cost the same."""
        self.layout.draw(requests, self.recipe)  # the checks of every request
        first = requests[0]
        steps = first.steps or self.layout.defaults.steps
        guidance = self.layout.defaults.guidance if first.guidance is None else first.guidance
        text, mask = self.prompts([request.prompt for request in requests], guidance > 0)
        marks = self.processor.text.ids.soi, self.processor.text.ids.eoi
        samplers = [self._sampler(request.known, request.seed, steps) for request in requests]
        forwards = range(steps) if only is None else only
        return draw(self.model, text, mask, samplers, marks, guidance, forwards, before, part)

    def prompts(self, prompts: Sequence[str], guided: bool) -> tuple[Tensor, Tensor]:
        """Left-padded prompts [R, T], the unconditional ones last, and the additive mask of rows with an image."""
        text, config = self.processor.text, self.model.config
        rows = [text.prompt(prompt) for prompt in prompts]
        rows += [text.null_prompt()] * (len(prompts) * guided)
        ids = torch.tensor([[text.ids.pad] * (config.max_text + 1 - len(row)) + row for row in rows])
        image = torch.tensor([text.ids.soi, *[config.mask] * config.image_tokens, text.ids.eoi])
        whole = torch.cat((ids, image.expand(len(ids), -1)), dim=1)
        mask = naive.drawing_mask(whole, text.ids.pad, text.ids.soi, text.ids.eoi)
        return ids.to(self.model.device), naive.additive(mask, self.model.dtype).to(self.model.device)

    def _sampler(self, known: Known | None, seed: int, steps: int) -> MaskedSampler:
        config, layout = self.model.config, self.layout
        first, noise = layout.first(known), Noise(seed)
        schedule = SCHEDULES[config.remasking]
        return MaskedSampler(first, steps, config.codes, config.mask, layout.block, noise, schedule=schedule)

    def tokens(
        self,
        requests: Sequence[AnswerRequest],
        only: Sequence[int] | None = None,
        before: Callable[[int], None] = nothing,
        part: naive.Part = naive.unnamed,
    ) -> Tensor:
        """Greedy tokens [B, n] of questions of equal length about one image each, however they might stop. ``only`` the
        forwards named, each over a row as long as it has become by then."""
        rows = self._questions(requests, part)
        if only is None:
            forwards = requests[0].max_new_tokens or self.layout.defaults.max_new_tokens
            loops = [(0, forwards, answer(self.model, *rows, forwards, part))]
        else:
            loops = [(index, 1, answer(self.model, *_longer(*rows, index), 1, part)) for index in only]
        given = []
        for first, count, loop in loops:
            for index in range(first, first + count):
                before(index)
                given.append(next(loop))
        return torch.stack(given, dim=1)

    def explain(self, task: Task = "generation", **settings: Any) -> PlanTable:
        """What the original computes: whole rows in every forward, and logits of every token of them."""
        table, spec, sizes = super().explain(task, **settings), self.model.spec, self.sizes
        images = sizes.image_tokens(settings.get("height"), settings.get("width"))
        scale = settings.get("guidance")
        guided = (self.layout.defaults.guidance if scale is None else scale) > 0
        forwards = []
        for forward in table.forwards:
            length, rows = table.forwards[0].tokens + forward.step.index, 1
            if task == "generation":
                length, rows = sizes.padded(images), 1 + guided
            flops = cost.decoder(spec, forward.plan.layers, length, 0, {}) + spec.logits.flops(length)
            forwards.append(replace(forward, rows=rows, tokens=length, past=0, flops=rows * flops))
        return replace(table, forwards=tuple(forwards), prompts=())

    @torch.inference_mode()
    def _questions(self, requests: Sequence[AnswerRequest], part: naive.Part = naive.unnamed) -> tuple[Tensor, Tensor]:
        """Embedded rows [B, S, h] of questions of equal length, and their bool mask [B, 1, S, S]."""
        with part("VAE"):
            scripts = self.layout.answer(requests)
        rows, masks = [], []
        with part("features"):
            for script in scripts:
                row, mask = embedded(self.model, script[0].segments)  # type: ignore[union-attr]
                rows.append(row)
                masks.append(mask)
        return torch.stack(rows), torch.cat(masks).to(self.model.device)


def _longer(x: Tensor, mask: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """Rows and their mask after ``tokens`` of an answer, whichever these are."""
    seen = mask[:, :, -1:].expand(-1, -1, tokens, -1)
    new = torch.ones(tokens, tokens, dtype=torch.bool, device=mask.device).tril().expand(len(mask), 1, -1, -1)
    unseen = new.new_zeros(len(mask), 1, mask.shape[2], tokens)
    grown = torch.cat((torch.cat((mask, seen), dim=2), torch.cat((unseen, new), dim=2)), dim=3)
    return torch.cat((x, x[:, -1:].expand(-1, tokens, -1)), dim=1), grown


def embedded(model: ShowO, segments: Sequence[Segment]) -> tuple[Tensor, Tensor]:
    """A row of segments, embedded [S, h], and its bool mask [1, 1, S, S]."""
    whole = segments[0].layout
    for segment in segments[1:]:
        whole = whole.cat(segment.layout.shifted(whole.shape[1], whole.shape[1]))
    mask = visible(whole, whole)
    assert mask is not None
    return torch.cat(model.embed([segment.content for segment in segments])), mask
