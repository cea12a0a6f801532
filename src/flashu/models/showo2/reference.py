"""The original program as an engine: one request at a time, with all the work its code does.

Drawing: rows padded to full length, both guidance rows embedded, the mask built anew and logits at every position in
every forward. Answering: the whole row again for every token, its mask grown by a row and a column. No cache, eager.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from flashu.errors import FlashUError, PromptError
from flashu.inference.actions import AnswerRequest, DrawRequest, Visual
from flashu.inference.engine import Answer, Engine, Generation
from flashu.inference.run import StepTrace
from flashu.inference.samplers.noise import Noise
from flashu.inference.samplers.solvers import euler, grid
from flashu.models.pictures import Picture
from flashu.models.showo2 import naive
from flashu.models.showo2.layout import ShowO2Layout, question
from flashu.models.showo2.model import ShowO2
from flashu.models.showo2.processor import Processor
from flashu.plan import Plan, Step, Task, cost
from flashu.plan.recipe import Recipe
from flashu.plan.table import PlanTable
from flashu.runtime.layout import Segment, visible

NAME = "original"


def nothing(index: int) -> None:
    """The default of ``before``."""


@torch.inference_mode()
def draw(
    model: ShowO2,
    ids: Tensor,
    blocks: Tensor,
    z: Tensor,
    times: Tensor,
    guidance: float | None,
    before: Callable[[int], None] = nothing,
    part: naive.Part = naive.unnamed,
) -> Tensor:
    """Euler steps of latents z [B, c, H, W] along ``times``; returns the last latents.

    ``ids`` [R, S]: padded rows, conditional then (under guidance) unconditional; ``blocks`` [R, 1, 2]: (offset,
    length) of their image. ``before``: called with the index of each forward; ``part``: see `naive.forward`.
    """
    for index, dt in enumerate(times.diff().tolist()):
        before(index)
        mask = additive(naive.omni_mask(ids.shape[1], blocks), model.dtype)
        t = times[index].expand(len(ids)).to(model.device)
        latents = z if guidance is None else z.repeat(2, 1, 1, 1)
        _, velocity = naive.forward(model, ids, latents, t, mask, blocks, part)
        if guidance is not None:
            conditional, unconditional = velocity.chunk(2)
            velocity = unconditional + guidance * (conditional - unconditional)
        z = euler(z, velocity, dt)
    return z


@torch.inference_mode()
def answer(model: ShowO2, x: Tensor, mask: Tensor, forwards: int, part: naive.Part = naive.unnamed) -> Iterator[Tensor]:
    """Greedy tokens [B], one after another, of embedded rows x [B, S, h] with bool mask [B, 1, S, S]."""
    grown = additive(mask, model.dtype)
    for _ in range(forwards):
        _, logits = naive.decode(model, x, grown, part)
        token = logits[:, -1].argmax(-1)
        yield token
        x = torch.cat((x, model.embed_tokens(token[:, None])), dim=1)
        grown = with_one_more(grown)


def with_one_more(mask: Tensor) -> Tensor:
    """[B, 1, S, S] -> [B, 1, S+1, S+1]: the new token sees what the last one saw, and itself; nobody sees it."""
    below = torch.cat((mask, mask[:, :, -1:]), dim=2)
    beside = torch.full_like(below[..., :1], torch.finfo(mask.dtype).min)
    beside[:, :, -1] = 0
    return torch.cat((below, beside), dim=3)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask as the program adds it to the scores."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)


class Reference(Engine):
    """`generate` and `answer` of one item at a time by the original's loops, exact recipe only. The rest is for timing;
    see `models.family.TimedReference`."""

    def __init__(self, model: ShowO2, processor: Processor) -> None:
        super().__init__(model, processor, Recipe(name=NAME))
        self.model: ShowO2 = model
        self.layout: ShowO2Layout

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
        decode: bool = True,
    ) -> Generation:
        """One image of one prompt. Takes as many forwards as `Engine.generate`, so that both draw the same image."""
        if not isinstance(prompts, str) or not isinstance(seed, int):
            raise PromptError("the original program draws one prompt with one seed at a time")
        latents = self.latents([DrawRequest(prompts, seed, steps, guidance, shift, height, width)])
        planned = self.explain(steps=steps, guidance=guidance, height=height, width=width).forwards
        trace = [StepTrace(forward.step, forward.plan, forward.rows, forward.tokens, 0) for forward in planned]
        return Generation(self.decode(latents) if decode else [], latents, [prompts], [seed], [trace])

    def answer(  # type: ignore[override]
        self, images: Picture, questions: str, *, max_new_tokens: int | None = None
    ) -> Answer:
        """One greedy answer to one question about one image."""
        if not isinstance(questions, str) or isinstance(images, list | tuple):
            raise FlashUError("the original program answers one question about one image at a time")
        request = AnswerRequest(questions, (images,), max_new_tokens)
        text = self.processor.text
        budget = max_new_tokens or self.layout.defaults.max_new_tokens
        x, mask = self._questions([request])
        loop = (int(token) for token in answer(self.model, x, mask, budget))
        ids = list(takewhile(lambda token: token != text.ids.eos, loop))
        steps = [
            Step("understanding", "token" if i else "prefill", i, budget) for i in range(min(len(ids) + 1, budget))
        ]
        trace = [StepTrace(step, Plan(), 1, x.shape[1] + step.index, 0) for step in steps]
        return Answer(text.decode(ids), ids, trace)

    # -- for timing ----------------------------------------------------------------------------------------------
    def forwards(self, steps: int) -> int:
        """The program takes one forward fewer than it has time points."""
        return steps - 1

    def latents(
        self,
        requests: Sequence[DrawRequest],
        only: Sequence[int] | None = None,
        before: Callable[[int], None] = nothing,
        part: naive.Part = naive.unnamed,
    ) -> Tensor:
        """Latents [B, c, h, w] of requests that differ in prompt and seed. ``only`` as many forwards as are named
        there: all cost the same."""
        model, text, defaults, first = self.model, self.processor.text, self.layout.defaults, requests[0]
        scale = defaults.guidance if first.guidance is None else first.guidance
        size = self.layout.latent_size(first.height or defaults.height, first.width or defaults.width)
        count = size[0] * size[1] // model.config.patch_size**2
        rows = [text.prompt(request.prompt) for request in requests]
        if scale > 0:  # the original's rule: 0 is off
            rows += [text.null_prompt()] * len(requests)
        length = self.sizes.padded(count)
        ids = torch.tensor([text.padded_row(row, count, length) for row in rows], device=model.device)
        blocks = torch.tensor([[[len(row), count + 1]] for row in rows], device=model.device)
        noise = [Noise(request.seed).normal(model.config.image_latent_dim, *size) for request in requests]
        times = grid(first.steps or defaults.steps, defaults.shift if first.shift is None else first.shift)
        times = times if only is None else times[: len(only) + 1]
        z = torch.stack(noise).to(model.device)
        return draw(model, ids, blocks, z, times, scale if scale > 0 else None, before, part)

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
            length = table.forwards[0].tokens + forward.step.index
            rows, plan, flops = 1, forward.plan, 0
            if task == "generation":
                length, rows = sizes.padded(images), 1 + guided
                flops = spec.head.flops(length, length) + spec.output.flops(length)
            if task == "generation" or not forward.step.index:
                flops += spec.image.flops(images, images)
            flops += cost.decoder(spec, plan.layers, length, 0, {}) + spec.logits.flops(length)
            forwards.append(replace(forward, rows=rows, tokens=length, past=0, flops=rows * flops))
        return replace(table, forwards=tuple(forwards), prompts=())

    def _questions(self, requests: Sequence[AnswerRequest], part: naive.Part = naive.unnamed) -> tuple[Tensor, Tensor]:
        """Embedded rows and their mask."""
        x, mask = question_rows(self.layout, [(request.images[0], request.text) for request in requests], part)
        return x, mask.to(self.model.device)


def _longer(x: Tensor, mask: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """Rows and their mask after ``tokens`` of an answer, whichever these are."""
    seen = mask[:, :, -1:].expand(-1, -1, tokens, -1)
    new = torch.ones(tokens, tokens, dtype=torch.bool, device=mask.device).tril().expand(len(mask), 1, -1, -1)
    unseen = new.new_zeros(len(mask), 1, mask.shape[2], tokens)
    grown = torch.cat((torch.cat((mask, seen), dim=2), torch.cat((unseen, new), dim=2)), dim=3)
    return torch.cat((x, x[:, -1:].expand(-1, tokens, -1)), dim=1), grown


@torch.inference_mode()
def question_rows(
    layout: ShowO2Layout, asked: Sequence[tuple[Visual, str]], part: naive.Part = naive.unnamed
) -> tuple[Tensor, Tensor]:
    """Embedded rows [B, S, h] of questions of equal length about one image each, and their bool mask [B, 1, S, S]."""
    with part("VAE"):
        shown = layout.shown([AnswerRequest(text, (image,)) for image, text in asked])
    rows, masks = [], []
    for image, text in asked:
        segments = question(layout.model, layout.processor.text.question_parts(text, 1), [shown[id(image)]])
        with part("features"):
            row, mask = embedded(layout.model, segments)
        rows.append(row)
        masks.append(mask)
    return torch.stack(rows), torch.cat(masks)


def embedded(model: ShowO2, segments: Sequence[Segment]) -> tuple[Tensor, Tensor]:
    """A row of segments, embedded [S, h], and its bool mask [1, 1, S, S]."""
    whole = segments[0].layout
    for segment in segments[1:]:
        whole = whole.cat(segment.layout.shifted(whole.shape[1], whole.shape[1]))
    mask = visible(whole, whole)
    assert mask is not None
    return torch.cat(model.embed([segment.content for segment in segments])), mask
