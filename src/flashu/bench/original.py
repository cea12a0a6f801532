"""The released programs' loops (`loops.original`) on a subject: the first row of every table."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from flashu.bench.kinds import ENCODE, ORIGINAL, SETUP, Kind
from flashu.bench.subject import Subject
from flashu.bench.watch import AUTOENCODER, WatchedModel
from flashu.inference.loops import original
from flashu.inference.requests import encoded, question_rows
from flashu.inference.samplers import flow
from flashu.models.products import plain_products
from flashu.runtime.tokens import visible


def evaluations(subject: Subject) -> int:
    """Forwards the program takes: one fewer than its time points; one per token."""
    return subject.steps - 1 if subject.task == "t2i" else subject.new_tokens


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
    times = flow.grid(max(evaluations(subject), 1), subject.processor.defaults.shift)[: forwards + 1]

    def before(_: int) -> None:
        watch.begin(Kind(ORIGINAL, guided=guided))

    z = original.draw(model, ids, blocks, subject.noise(), times, subject.guidance, before, watch.part)
    watch.end()
    return z


@torch.inference_mode()
@plain_products()
def answer(model: WatchedModel, subject: Subject, only: tuple[int, ...] | None = None) -> Tensor:
    """Tokens [B, n], greedy. ``only``: just the forwards of these indices, over rows as long as they would be."""
    watch = model.watch
    watch.begin(Kind(ENCODE))
    with watch.part(AUTOENCODER):
        latents = encoded(model, subject.processor, subject.pixels())
    new: list[Tensor] = []
    if only is None:
        loop = loop_of(model, subject, latents, 0)
        for _ in range(subject.new_tokens):
            watch.begin(Kind(ORIGINAL))
            new.append(next(loop))
    for index in only or ():
        watch.begin(Kind(SETUP))
        loop = loop_of(model, subject, latents, index)
        watch.begin(Kind(ORIGINAL))
        new.append(next(loop))
    watch.end()
    return torch.stack(new, dim=1)


def loop_of(model: WatchedModel, subject: Subject, latents: Tensor, said: int) -> Iterator[Tensor]:
    """The program's loop over rows that hold ``said`` tokens of the answer."""
    before, after = subject.question
    question = (before, [*after, *[after[-1]] * said])
    x, tokens = question_rows(model, latents, [question] * subject.batch, list(range(subject.batch)))
    mask = visible(tokens, tokens)
    assert mask is not None
    return original.answer(model, x, mask.to(model.device), subject.new_tokens, model.watch.part)
