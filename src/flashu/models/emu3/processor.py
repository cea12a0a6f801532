"""What surrounds the weights: words, the image tokenizer, and how the model is usually run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from flashu.errors import ImageError
from flashu.models.defaults import GenerationDefaults
from flashu.models.emu3.text import Text
from flashu.models.pictures import Picture, normalised, opened, pixels, to_pil
from flashu.models.video import Video

MOST_ASPECT = 5  # of a picture that is shown, as in the authors' program
SHOWN = (512 * 512, 1024 * 1024)  # pixels of a picture that is shown, at least and at most
FACTOR = 8  # pixels per code, where no image tokenizer says


class Codec(Protocol):
    """An image tokenizer: pixels to codes and back. ``factor``: pixels per code, each way."""

    @property
    def factor(self) -> int: ...

    def encode(self, pixels: Tensor) -> Tensor:
        """pixels [B, 3, H, W] in [-1, 1] -> codes [B, H/factor, W/factor]."""

    def decode(self, codes: Tensor) -> Tensor:
        """codes [B, h, w] -> pixels [B, 3, h*factor, w*factor]."""


@dataclass
class Processor:
    """See `models.protocol.Processor`. ``area``: the least and the most pixels of a picture that is shown; None = all
    are cropped to the default size. ``top_k``: codes that are drawn from, 1 = the likeliest. ``negative_image``:
    whether the guidance branch's prompt ends with the mark and size of an image, as in the authors' program; without,
    as in an example of transformers' documentation, drawings differ."""

    text: Text
    vae: Codec | None
    defaults: GenerationDefaults = field(default_factory=GenerationDefaults)
    area: tuple[int, int] | None = SHOWN
    top_k: int = 2048
    negative_image: bool = True

    @property
    def factor(self) -> int:
        return FACTOR if self.vae is None else self.vae.factor

    def pixels(self, image: Picture) -> Tensor:
        """One picture as it is shown [1, 3, H, W], in [-1, 1]."""
        if self.area is None:
            return pixels(image, self.defaults.height, self.defaults.width)
        if isinstance(image, Tensor) and image.is_floating_point():
            height, width = shown_size(image.shape[-2], image.shape[-1], self.factor, *self.area)
            if image.shape[-2:] == (height, width):
                return pixels(image, height, width)
        picture = opened(image)
        height, width = shown_size(picture.height, picture.width, self.factor, *self.area)
        return normalised(picture.resize((width, height), Image.Resampling.BICUBIC))

    def size(self, ratio: str = "1:1", area: int | None = None) -> tuple[int, int]:
        """(height, width) in pixels of an image to draw with sides "width:height" and about this area (default: the
        checkpoint's), as the authors' program rounds them."""
        try:
            width, height = map(int, ratio.split(":"))
            scale = math.sqrt((area or self.defaults.height * self.defaults.width) / (width * height)) / self.factor
        except (AttributeError, ValueError, ZeroDivisionError) as e:
            raise ImageError(f"a ratio is written as width:height, like 16:9, not {ratio!r}") from e
        return round(height * scale) * self.factor, round(width * scale) * self.factor

    def frames(self, visual: Picture | Video) -> list[Tensor]:
        if isinstance(visual, Video):
            raise ImageError("Emu3 answers about pictures: give frames of a video as several of them")
        return [self.pixels(visual)]

    def to_pil(self, pixels: Tensor) -> list[Image.Image]:
        return to_pil(pixels)

    @property
    def pad(self) -> int:
        return self.text.ids.pad

    @property
    def placeholder(self) -> int:
        return self.text.ids.image

    @property
    def stop(self) -> int:
        return self.text.ids.eos

    def row(self, text: str, images: int = 0) -> list[int]:
        first, *rest = self.text.question_parts(text, images)
        return first + [token for part in rest for token in (self.placeholder, *part)]

    def cut(self, prompt: str) -> str:
        ids = self.text.encode(prompt)
        return prompt if len(ids) <= self.text.max_text else self.text.decode(ids[: self.text.max_text])

    def decode(self, ids: list[int], special: bool = False) -> str:
        return self.text.tokenizer.decode(ids, skip_special_tokens=not special)

    def to(self, device: torch.device | str | int) -> None:
        move = getattr(self.vae, "to", None)
        if move is not None:
            move(device)


def shown_size(height: int, width: int, factor: int, least: int, most: int) -> tuple[int, int]:
    """Sides of a picture as it is shown: multiples of ``factor`` whose product lies in [least, most]."""
    if max(height, width) > MOST_ASPECT * min(height, width):
        raise ImageError(f"a picture of {width}x{height} is longer than {MOST_ASPECT} times its width: crop it first")
    rounded = round(height / factor) * factor, round(width / factor) * factor
    if rounded[0] * rounded[1] > most:
        scale = math.sqrt(height * width / most)
        return max(factor, int(height / scale / factor) * factor), max(factor, int(width / scale / factor) * factor)
    if rounded[0] * rounded[1] < least:
        scale = math.sqrt(least / (height * width))
        return math.ceil(height * scale / factor) * factor, math.ceil(width * scale / factor) * factor
    return rounded
