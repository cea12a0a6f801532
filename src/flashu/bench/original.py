"""The released programs' own loops, with the work they do and no more: the first row of every table.

Drawing: rows padded to full length, both guidance rows embedded, the mask built anew and logits at every position in
every forward. Answering: the whole row again for every token, its mask grown by a row and a column. No cache, eager.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flashu import flow
from flashu.bench.kinds import ENCODE, ORIGINAL, SETUP, Kind
from flashu.bench.subject import Subject
from flashu.bench.watch import DECODER, HEAD, WatchedModel
from flashu.models.showo2 import naive
from flashu.requests import encoded, question_rows
from flashu.runtime.tokens import visible


class WatchedOriginal(WatchedModel):
    """Watched room by room: this loop has no runner."""

    def layer(self, *args: Any, **settings: Any) -> Any:
        with self.watch.part(DECODER):
            return super().layer(*args, **settings)

    def head_body(self, *args: Any, **settings: Any) -> Any:
        with self.watch.part(HEAD):
            return super().head_body(*args, **settings)


def evaluations(subject: Subject) -> int:
    """Forwards the program takes: one fewer than its time points; one per token."""
    return subject.steps - 1 if subject.task == "t2i" else subject.new_tokens


@torch.inference_mode()
def draw(model: WatchedModel, subject: Subject, forwards: int) -> Tensor:
    """The first ``forwards`` forwards of the program's loop: latents [B, c, h, w]."""
    watch, text = model.watch, subject.processor.text
    watch.begin(Kind(SETUP))
    guided = subject.guidance is not None
    prompts = subject.prompts + [text.null_prompt()] * (subject.batch if guided else 0)
    count = subject.image_tokens
    length = text.max_text + count + 5
    ids = torch.tensor([text.padded_row(prompt, count, length) for prompt in prompts], device=model.device)
    blocks = torch.tensor([[[len(prompt), count + 1]] for prompt in prompts], device=model.device)
    times = flow.grid(max(evaluations(subject), 1), subject.processor.defaults.shift)
    z = subject.noise()
    for index in range(forwards):
        watch.begin(Kind(ORIGINAL, guided=guided))
        mask = additive(naive.omni_mask(length, blocks), model.dtype)
        t = times[index].expand(len(ids)).to(model.device)
        latents = z.repeat(2, 1, 1, 1) if guided else z
        _, velocity = naive.forward(model, ids, latents, t, mask, blocks)
        if subject.guidance is not None:
            conditional, unconditional = velocity.chunk(2)
            velocity = flow.guide(conditional, unconditional, subject.guidance)
        z = flow.euler(z, velocity, float(times[index + 1] - times[index]))
    watch.end()
    return z


@torch.inference_mode()
def answer(model: WatchedModel, subject: Subject, only: tuple[int, ...] | None = None) -> Tensor:
    """Tokens [B, n], greedy. ``only``: just the forwards of these indices, over rows as long as they would be."""
    watch = model.watch
    watch.begin(Kind(ENCODE))
    latents = encoded(model, subject.processor, subject.pixels())
    x, tokens = question_rows(model, latents, [subject.question] * subject.batch, list(range(subject.batch)))
    mask = visible(tokens, tokens)
    assert mask is not None
    grown = additive(mask.to(model.device), model.dtype)
    new: list[Tensor] = []
    for index in range(subject.new_tokens):
        if only is None or index in only:
            watch.begin(Kind(ORIGINAL))
            _, logits = naive.decode(model, x, grown)
            token = logits[:, -1].argmax(-1)
        else:
            watch.begin(Kind(SETUP))
            token = torch.zeros(len(x), dtype=torch.long, device=x.device)
        new.append(token)
        x = torch.cat((x, model.embed_text(token[:, None])), dim=1)
        grown = with_one_more(grown)
    watch.end()
    return torch.stack(new, dim=1)


def with_one_more(mask: Tensor) -> Tensor:
    """[B, 1, S, S] -> [B, 1, S+1, S+1]: the new token sees what the last one saw, and itself; nobody sees it."""
    below = torch.cat((mask, mask[:, :, -1:]), dim=2)
    beside = torch.full_like(below[..., :1], torch.finfo(mask.dtype).min)
    beside[:, :, -1] = 0
    return torch.cat((below, beside), dim=3)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask as the program adds it to the scores."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)
