"""What surrounds the weights: words, the image tokenizer, and how the model is usually run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from flashu.errors import ImageError
from flashu.models.defaults import GenerationDefaults
from flashu.models.pictures import Picture, pixels, to_pil
from flashu.models.showo.text import Text
from flashu.models.video import Video
from flashu.models.words import around_images

FACTOR = 16  # pixels per code, where no image tokenizer says


class Codec(Protocol):
    """An image tokenizer: pixels to codes and back, in raster order. ``factor``: pixels per code, each way."""

    @property
    def factor(self) -> int: ...

    def encode(self, pixels: Tensor) -> Tensor:
        """pixels [B, 3, H, W] in [-1, 1] -> codes [B, N]."""

    def decode(self, codes: Tensor, shape: tuple[int, int] | None = None) -> Tensor:
        """codes [B, N] -> pixels [B, 3, H, W]; ``shape``: rows and columns of codes, None = a square."""


@dataclass
class Processor:
    """See `models.protocol.Processor`. ``clip``: what gives the features of pictures in questions [B, F, c], for models
    that are shown them so."""

    text: Text
    vae: Codec | None
    defaults: GenerationDefaults = field(default_factory=GenerationDefaults)
    clip: Any = None

    @property
    def factor(self) -> int:
        return FACTOR if self.vae is None else self.vae.factor

    def pixels(self, image: Picture) -> Tensor:
        """One picture -> [1, 3, H, W] in [-1, 1], in the checkpoint's size."""
        return pixels(image, self.defaults.height, self.defaults.width)

    def frames(self, visual: Picture | Video) -> list[Tensor]:
        if isinstance(visual, Video):
            raise ImageError("Show-o answers about pictures: give one frame of the video")
        return [self.pixels(visual)]

    def to_pil(self, pixels: Tensor) -> list[Image.Image]:
        return to_pil(pixels)

    @property
    def pad(self) -> int:
        return self.text.ids.pad

    @property
    def placeholder(self) -> int:
        """The token before an image stands for the image in a row."""
        return self.text.ids.soi

    @property
    def stop(self) -> int:
        return self.text.ids.eot

    def row(self, text: str, images: int = 0) -> list[int]:
        before, *rest = around_images(text, images)
        if any(words.strip() for words in (before, *rest[:-1]) if rest):
            raise ImageError("Show-o shows its picture before the question: put <image> first, or leave it out")
        return [*[self.placeholder] * images, *self.text.question(rest[-1] if rest else before)]

    def cut(self, prompt: str) -> str:
        """As the authors' program cuts it."""
        ids, most = self.text.encode(prompt), self.text.max_text - 2
        return prompt if len(ids) <= most else self.text.decode(ids[:most])

    def decode(self, ids: list[int], special: bool = False) -> str:
        return self.text.tokenizer.decode(ids, skip_special_tokens=not special)

    def to(self, device: torch.device | str | int) -> None:
        for part in (self.vae, self.clip):
            move = getattr(part, "to", None)
            if move is not None:
                move(device)
