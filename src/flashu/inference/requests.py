"""From what a user asks to a run and its inputs: rows of token ids, noise, embedded questions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from flashu.errors import FlashUError, ImageError, RecipeError
from flashu.inference.loops import canvas as rows
from flashu.inference.loops.canvas import IMAGE_BLOCK, Canvas, Earlier
from flashu.inference.loops.decode import decode
from flashu.inference.run import Run
from flashu.models.showo2.model import ShowO2
from flashu.models.showo2.processor import Picture, Processor
from flashu.models.showo2.video import Video
from flashu.plan.recipe import Recipe
from flashu.runtime.runner import Runner
from flashu.runtime.tokens import Tokens

Parts = Sequence[list[int]]
"""A question's token ids before, between and after its images: one list more than there are images."""
Visual: TypeAlias = "Picture | Video"
"""What takes one place in a question."""
Shown: TypeAlias = "Visual | list[Visual] | tuple[Visual, ...]"
"""What a question is about: one picture or video, or several (a list or tuple)."""
AT_ONCE = 8  # pictures the autoencoder encodes at a time


def latent_size(model: ShowO2, processor: Processor, height: int, width: int) -> tuple[int, int]:
    """Latent cells (rows, columns) of an image in pixels; `ImageError` unless the image tokens tile it."""
    factor = 8 if processor.vae is None else processor.vae.factor
    cell = factor * model.config.patch_size
    if height < cell or width < cell or height % cell or width % cell:
        raise ImageError(f"images are multiples of {cell} pixels, at least {cell}; {width}x{height} is not")
    return height // factor, width // factor


def drawing_rows(
    model: ShowO2,
    processor: Processor,
    prompts: list[list[int]],
    size: tuple[int, int],
    *,
    guided: bool,
    padded: bool,
    earlier: Sequence[Earlier] | None = None,
) -> Canvas:
    """The rows that draw ``prompts`` (token ids), followed under guidance by as many of the empty prompt.

    ``earlier``: the images in each prompt. The original shows the unconditional rows none.
    """
    text, p = processor.text, model.config.patch_size
    count = (size[0] // p) * (size[1] // p)
    nulls = len(prompts) if guided else 0
    every = prompts + [text.null_prompt()] * nulls
    if not padded:
        return rows.packed(every, count, None if earlier is None else [*earlier, *[()] * nulls])
    if earlier is not None:
        raise RecipeError("the released FlashU program draws one image per row: leave reference mode to draw a story")
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
    earlier: Sequence[Earlier] | None = None,
) -> tuple[Run, Canvas]:
    """A run that draws one image per prompt, which may hold ``earlier`` ones. Scale 0 (the original's "off") and 1 need
    no unconditional branch."""
    assert isinstance(runner.model, ShowO2)
    guided = scale not in (0, 1)
    canvas = drawing_rows(runner.model, processor, prompts, size, guided=guided, padded=recipe.padded, earlier=earlier)
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
    """A run that answers one question per image, video or group of them, and the stream of its tokens (see
    `loops.decode`)."""
    assert isinstance(runner.model, ShowO2)
    check_questions(processor, images, questions)
    groups = [list(shown) if isinstance(shown, list | tuple) else [shown] for shown in images]
    parts = [processor.text.question_parts(q, len(group)) for q, group in zip(questions, groups, strict=True)]
    distinct = {id(seen): seen for group in groups for seen in group}
    pixels = [pixels_of(processor, seen) for seen in distinct.values()]
    budget = processor.defaults.max_new_tokens if max_new_tokens is None else max_new_tokens
    run = Run(runner, recipe, "understanding", positive("max_new_tokens", budget))
    frames = encoded(runner.model, processor, [frame for seen in pixels for frame in seen])
    latents = in_shots(frames, [len(seen) if isinstance(seen, Video) else 0 for seen in distinct.values()])
    place = {key: n for n, key in enumerate(distinct)}
    x, tokens = question_rows(runner.model, latents, parts, [[place[id(seen)] for seen in group] for group in groups])
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


def pixels_of(processor: Processor, seen: Visual) -> list[Tensor]:
    """Pixels [1, 3, H, W] of a picture, or of each frame of a video."""
    if not isinstance(seen, Video):
        return [processor.pixels(seen)]
    distinct = {id(frame): frame for frame in seen.frames}
    pixels = {key: processor.pixels(frame, whole=True) for key, frame in distinct.items()}
    return [pixels[id(frame)] for frame in seen.frames]


@torch.inference_mode()
def encoded(model: ShowO2, processor: Processor, pixels: list[Tensor]) -> Tensor:
    """Clean latents [U, c, h, w] of pictures [1, 3, H, W]."""
    assert processor.vae is not None
    parts = torch.cat(pixels).to(model.device).split(AT_ONCE)
    return torch.cat([processor.vae.encode(part) for part in parts])


def in_shots(latents: Tensor, frames: Sequence[int]) -> list[Tensor]:
    """Latents [U, c, h, w] as those of images [c, h, w], where ``frames`` says 0, and of videos of that many frames
    [T, c, h, w]."""
    parts = latents.split([max(count, 1) for count in frames])
    return [part if count else part[0] for part, count in zip(parts, frames, strict=True)]


@torch.inference_mode()
def blocks(model: ShowO2, latents: Iterable[Tensor]) -> list[Tensor]:
    """Images [c, h, w] and videos [T, c, h, w] as clean data (t = 1): each a time token and its visual tokens
    [1 + n, h]."""
    _, time_token = model.embed_time(torch.ones(1, device=model.device))
    given = list(latents)
    stills = [shot for shot in given if shot.ndim == 3]
    images = iter(model.embed_latent(torch.stack(stills).to(model.device)) if stills else ())
    seen = (next(images) if shot.ndim == 3 else model.embed_frames(shot.to(model.device)) for shot in given)
    return [torch.cat((time_token, tokens)) for tokens in seen]


@torch.inference_mode()
def question_rows(
    model: ShowO2, latents: Iterable[Tensor], parts: Sequence[Parts], shown: Sequence[int | Sequence[int]]
) -> tuple[Tensor, Tokens]:
    """Rows [before, time, image, (between, time, image,) after], embedded and right-padded [B, S, h]; row r sees the
    image or images ``shown[r]`` of ``latents``: images [c, h, w], videos [T, c, h, w].

    A video has one time token, and its frames follow each other without a mark.
    """
    given = list(latents)
    embedded = blocks(model, given)
    groups = [[seen] if isinstance(seen, int) else seen for seen in shown]
    lengths = [
        sum(map(len, words)) + sum(len(embedded[n]) for n in seen) for words, seen in zip(parts, groups, strict=True)
    ]
    tokens = Tokens.text(lengths)
    in_block, visual = tokens.block.clone(), tokens.visual.clone()
    x = torch.zeros(*tokens.shape, embedded[0].shape[-1], dtype=embedded[0].dtype, device=embedded[0].device)
    for row, (texts, seen) in enumerate(zip(parts, groups, strict=True)):
        words = model.embed_text(torch.tensor([token for ids in texts for token in ids], device=model.device))
        at = 0
        for number, (ids, spoken) in enumerate(zip(texts, words.split([len(ids) for ids in texts]), strict=True)):
            x[row, at : at + len(ids)] = spoken
            at += len(ids)
            if number == len(seen):
                break
            block = embedded[seen[number]]
            x[row, at : at + len(block)] = block
            start, stop = both_ways(model, given[seen[number]], len(block))
            in_block[row, at + start : at + stop] = IMAGE_BLOCK + number
            visual[row, at + 1 : at + len(block)] = True
            at += len(block)
    return x, Tokens(tokens.pos, in_block, tokens.valid, visual)


def both_ways(model: ShowO2, latents: Tensor, length: int) -> tuple[int, int]:
    """Which positions of an image or video of ``length`` tokens in a question see each other both ways, counted from
    its time token.

    The released scripts start one token late, so the time token is causal, and stop after as many tokens as one image
    and its time token have: with eoi for an image, after some frames for a video (in the text, for a short one).
    """
    if model.config.understanding_block == "training":
        return 0, length
    rows, columns = (side // model.config.patch_size for side in latents.shape[-2:])
    return 1, rows * columns + 2


def positive(name: str, value: int) -> int:
    if not isinstance(value, int) or value < 1:
        raise FlashUError(f"{name} must be a whole number of at least 1, got {value!r}")
    return value
