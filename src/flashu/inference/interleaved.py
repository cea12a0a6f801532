"""Rows that hold images before the one to draw: texts and images in turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from flashu.errors import FlashUError, ImageError, PromptError
from flashu.inference.loops.canvas import Earlier
from flashu.inference.requests import blocks, encoded
from flashu.models.showo2.model import ShowO2
from flashu.models.showo2.processor import Picture, Processor

History: TypeAlias = "Sequence[tuple[str, Picture]]"
"""What a row holds before the image to draw: texts, each with the image after it (a picture, or latents [c, h, w] as
drawn)."""


def histories(history: History | Sequence[History], prompts: Sequence[str], one: bool) -> list[History]:
    """A history per prompt: of ``one`` prompt a history itself, else a list of them. `PromptError` if it is neither."""
    listed: Any = [history] if one else history
    if not isinstance(listed, list | tuple) or len(listed) != len(prompts):
        raise PromptError("with a list of prompts, history is a list with (text, image) pairs for each prompt")
    for pairs in listed:
        if not isinstance(pairs, list | tuple) or not all(isinstance(p, list | tuple) and len(p) == 2 for p in pairs):
            raise PromptError("a history is a list of (text, image) pairs, in the order of the row")
    return list(listed)


@torch.inference_mode()
def stories(
    model: ShowO2,
    processor: Processor,
    prompts: Sequence[str],
    histories: Sequence[History],
    size: tuple[int, int],
) -> tuple[list[list[int]], list[Earlier]]:
    """Token ids of each prompt after its history, and the images in it; every picture is encoded once."""
    count = (size[0] // model.config.patch_size) * (size[1] // model.config.patch_size)
    told = [[*(text for text, _ in pairs), prompt] for prompt, pairs in zip(prompts, histories, strict=True)]
    written = [processor.text.story(texts, count) for texts in told]
    distinct = {id(image): image for pairs in histories for _, image in pairs}
    latents = [_latents(model, processor, image, size) for image in distinct.values()]
    block = dict(zip(distinct, blocks(model, latents), strict=True))
    images = [[block[id(image)] for _, image in pairs] for pairs in histories]
    return [ids for ids, _ in written], [
        tuple(zip(starts, seen, strict=True)) for (_, starts), seen in zip(written, images, strict=True)
    ]


def _latents(model: ShowO2, processor: Processor, image: Picture, size: tuple[int, int]) -> Tensor:
    """Clean latents [c, h, w] of a picture, or what is latents already."""
    channels = model.config.image_latent_dim
    if isinstance(image, Tensor) and image.ndim == 3 and image.shape[0] == channels != 3:
        if image.shape[1:] != size or not image.is_floating_point() or not bool(image.isfinite().all()):
            raise ImageError(
                f"earlier latents must be finite [{channels}, {size[0]}, {size[1]}], the size of the image to draw, "
                f"not {image.dtype} {list(image.shape)}"
            )
        return image.float()
    if processor.vae is None:
        raise FlashUError("this model was loaded without an autoencoder: give earlier images as latents")
    height, width = (cells * processor.vae.factor for cells in size)
    return encoded(model, processor, [processor.pixels(image, height, width)])[0]
