"""From what a user asks to a run and its inputs: rows of token ids, noise, embedded questions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from flashu.errors import FlashUError, ImageError
from flashu.loops import canvas as rows
from flashu.loops.canvas import IMAGE_BLOCK, Canvas
from flashu.loops.decode import decode
from flashu.models.showo2.model import ShowO2
from flashu.models.showo2.processor import Picture, Processor
from flashu.recipe import Recipe
from flashu.run import Run
from flashu.runtime.runner import Runner
from flashu.runtime.tokens import Tokens

Parts = Sequence[list[int]]
"""A question's token ids before, between and after its images: one list more than there are images."""
Shown: TypeAlias = "Picture | list[Picture] | tuple[Picture, ...]"
"""What a question is about: one picture, or several (a list or tuple)."""


def latent_size(model: ShowO2, processor: Processor, height: int, width: int) -> tuple[int, int]:
    """Latent cells (rows, columns) of an image in pixels; `ImageError` unless the image tokens tile it."""
    factor = 8 if processor.vae is None else processor.vae.factor
    cell = factor * model.config.patch_size
    if height < cell or width < cell or height % cell or width % cell:
        raise ImageError(f"images are multiples of {cell} pixels, at least {cell}; {width}x{height} is not")
    return height // factor, width // factor


def drawing_rows(
    model: ShowO2, processor: Processor, prompts: list[list[int]], size: tuple[int, int], *, guided: bool, padded: bool
) -> Canvas:
    """The rows that draw ``prompts`` (token ids), followed under guidance by as many of the empty prompt."""
    text, p = processor.text, model.config.patch_size
    count = (size[0] // p) * (size[1] // p)
    every = prompts + [text.null_prompt()] * (len(prompts) if guided else 0)
    if not padded:
        return rows.packed(every, count)
    length = text.max_text + count + 5
    return rows.padded([text.padded_row(r, count, length) for r in every], [len(r) for r in every], count)


def drawing(
    runner: Runner,
    processor: Processor,
    recipe: Recipe,
    prompts: list[list[int]],
    size: tuple[int, int],
    steps: int,
    scale: float,
) -> tuple[Run, Canvas]:
    """A run that draws one image per prompt. Scale 0 (the original's "off") and 1 need no unconditional branch."""
    assert isinstance(runner.model, ShowO2)
    guided = scale not in (0, 1)
    canvas = drawing_rows(runner.model, processor, prompts, size, guided=guided, padded=recipe.padded)
    forwards = positive("forwards", recipe.forwards(steps))
    return Run(runner, recipe, "generation", forwards, guidance=scale if guided else None), canvas


def asking(
    runner: Runner,
    processor: Processor,
    recipe: Recipe,
    images: Sequence[Shown],
    questions: Sequence[str],
    max_new_tokens: int | None,
    choose: Callable[[Tensor], Tensor],
) -> tuple[Run, Iterator[list[int | None]]]:
    """A run that answers one question per image or group of images, and the stream of its tokens (see
    `loops.decode`)."""
    assert isinstance(runner.model, ShowO2)
    check_questions(processor, images, questions)
    groups = [list(shown) if isinstance(shown, list | tuple) else [shown] for shown in images]
    parts = [processor.text.question_parts(q, len(group)) for q, group in zip(questions, groups, strict=True)]
    distinct = {id(image): processor.pixels(image) for group in groups for image in group}
    budget = processor.defaults.max_new_tokens if max_new_tokens is None else max_new_tokens
    run = Run(runner, recipe, "understanding", positive("max_new_tokens", budget))
    latents = encoded(runner.model, processor, list(distinct.values()))
    place = {key: n for n, key in enumerate(distinct)}
    x, tokens = question_rows(runner.model, latents, parts, [[place[id(image)] for image in group] for group in groups])
    return run, decode(run, x, tokens, choose, processor.text.ids.eos)


def talking(
    runner: Runner,
    processor: Processor,
    recipe: Recipe,
    messages: Sequence[str],
    max_new_tokens: int | None,
    choose: Callable[[Tensor], Tensor],
) -> tuple[Run, Iterator[list[int | None]]]:
    """A run that answers messages without images, and the stream of its tokens."""
    rows = [torch.tensor(processor.text.message(message)) for message in messages]
    budget = processor.defaults.max_new_tokens if max_new_tokens is None else max_new_tokens
    run = Run(runner, recipe, "understanding", positive("max_new_tokens", budget))
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(runner.model.device)
    tokens = Tokens.text([len(row) for row in rows])
    with torch.inference_mode():
        x = runner.model.embed_text(ids)
    return run, decode(run, x, tokens, choose, processor.text.ids.eos)


def check_questions(processor: Processor, images: Sequence[Shown], questions: Sequence[str]) -> None:
    if not questions or len(images) != len(questions):
        raise ImageError(f"{len(images)} images for {len(questions)} questions: give one image per question")
    if any(isinstance(shown, list | tuple) and not shown for shown in images):
        raise ImageError("a question about no image: give at least one, or send a message without images")
    if processor.vae is None:
        raise FlashUError("this model was loaded without an autoencoder, so it cannot see images")


@torch.inference_mode()
def encoded(model: ShowO2, processor: Processor, pixels: list[Tensor]) -> Tensor:
    """Clean latents [U, c, h, w] of pictures [1, 3, H, W]."""
    assert processor.vae is not None
    return processor.vae.encode(torch.cat(pixels).to(model.device))


@torch.inference_mode()
def question_rows(
    model: ShowO2, latents: Tensor, parts: Sequence[Parts], shown: Sequence[int | Sequence[int]]
) -> tuple[Tensor, Tokens]:
    """Rows [before, time, image, (between, time, image,) after], embedded and right-padded [B, S, h]; row r sees the
    image or images ``shown[r]``.

    Each image is embedded once, as clean data (t = 1).
    """
    _, time_token = model.embed_time(torch.ones(1, device=model.device))
    image = model.embed_latent(latents)
    block = torch.cat((time_token.expand(len(image), 1, -1), image), dim=1)
    count = block.shape[1]
    groups = [[seen] if isinstance(seen, int) else seen for seen in shown]
    lengths = [sum(map(len, words)) + count * len(seen) for words, seen in zip(parts, groups, strict=True)]
    tokens = Tokens.text(lengths)
    in_block, visual = tokens.block.clone(), tokens.visual.clone()
    x = torch.zeros(*tokens.shape, block.shape[-1], dtype=block.dtype, device=block.device)
    # The released script starts the block one token late: the time token is causal and eoi is inside.
    late = int(model.config.understanding_block == "script")
    for n, (texts, seen) in enumerate(zip(parts, groups, strict=True)):
        words = model.embed_text(torch.tensor([token for ids in texts for token in ids], device=model.device))
        at = 0
        for number, (ids, embedded) in enumerate(zip(texts, words.split([len(ids) for ids in texts]), strict=True)):
            x[n, at : at + len(ids)] = embedded
            at += len(ids)
            if number == len(seen):
                break
            x[n, at : at + count] = block[seen[number]]
            in_block[n, at + late : at + count + late] = IMAGE_BLOCK + number
            visual[n, at + 1 : at + count] = True
            at += count
    return x, Tokens(tokens.pos, in_block, tokens.valid, visual)


def positive(name: str, value: int) -> int:
    if not isinstance(value, int) or value < 1:
        raise FlashUError(f"{name} must be a whole number of at least 1, got {value!r}")
    return value
