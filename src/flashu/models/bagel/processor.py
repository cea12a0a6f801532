"""What surrounds the weights: words, pictures in the sizes the model takes, the autoencoder, and the usual settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from flashu.errors import ImageError
from flashu.models.bagel.config import BagelConfig
from flashu.models.bagel.guidance import Steering
from flashu.models.bagel.text import Text
from flashu.models.defaults import GenerationDefaults
from flashu.models.pictures import Autoencoder, Picture, normalised, opened, to_pil
from flashu.models.sizes import Checked
from flashu.models.video import Video
from flashu.models.words import around_images

PIXELS = 14 * 14 * 9 * 1024  # most of a resized picture


@dataclass(frozen=True)
class Resizing(Checked):
    """Pictures are shrunk or grown so that their sides lie between ``shortest`` and ``longest`` (which wins) and are
    multiples of ``multiple`` pixels."""

    longest: int
    shortest: int
    multiple: int

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of a picture of the given ones."""

        def scaled(scale: float) -> tuple[int, int]:
            sides = (round(side * scale) for side in (height, width))
            a, b = (max(self.multiple, round(side / self.multiple) * self.multiple) for side in sides)
            return a, b

        scale = max(min(self.longest / max(height, width), 1.0), self.shortest / min(height, width))
        size = scaled(scale)
        if size[0] * size[1] > PIXELS:
            size = scaled(PIXELS / (size[0] * size[1]))  # by the areas' ratio, without a root, as the original does
        return size if max(size) <= self.longest else scaled(self.longest / max(size))


DRAWING = Steering()
EDITING = Steering(image=2.0, interval=(0.0, 1.0), renorm="text_channel")


@dataclass
class Processor:
    """See `models.protocol.Processor`. ``drawn``, ``viewed``: sizes of pictures for the autoencoder, and for the ViT,
    which sees them resized for the autoencoder first; ``drawing``, ``editing``: guidance."""

    text: Text
    vae: Autoencoder | None
    defaults: GenerationDefaults = field(default_factory=GenerationDefaults)
    drawn: Resizing = Resizing(1024, 512, 16)
    viewed: Resizing = Resizing(980, 224, 14)
    drawing: Steering = DRAWING
    editing: Steering = EDITING

    @classmethod
    def usual(cls, config: BagelConfig, defaults: GenerationDefaults, text: Any = None, vae: Any = None) -> Processor:
        """That of a released checkpoint."""
        most, patch = config.max_latent_size * config.cell, config.vit.patch_size
        drawn = Resizing(most, most // 2, config.cell)
        viewed = Resizing(config.vit_max_num_patch_per_side * patch, min(224, config.vit.image_size), patch)
        return cls(text, vae, defaults, drawn, viewed)

    def pixels(self, image: Picture) -> tuple[Tensor, Tensor]:
        """One picture for the autoencoder and for the ViT, each [3, H, W] in [-1, 1]."""
        whole = opened(image, white=True)
        height, width = self.drawn.size(whole.height, whole.width)
        first = whole.resize((width, height), Image.Resampling.BICUBIC)
        height, width = self.viewed.size(height, width)
        return normalised(first)[0], normalised(first.resize((width, height), Image.Resampling.BICUBIC))[0]

    def frames(self, visual: Picture | Video) -> list[Tensor]:
        if isinstance(visual, Video):
            raise ImageError("BAGEL sees pictures, not videos: give some of the frames as pictures")
        return [self.pixels(visual)[1][None]]

    def to_pil(self, pixels: Tensor) -> list[Image.Image]:
        return to_pil(pixels)

    @property
    def pad(self) -> int:
        return self.text.ids.pad

    @property
    def placeholder(self) -> int:
        return self.text.ids.img_pad

    @property
    def stop(self) -> int:
        return self.text.ids.eos

    def row(self, text: str, images: int = 0) -> list[int]:
        parts = around_images(text, images)
        said = [part for part in parts if part.strip()] or parts[-1:]  # one that is blank as a whole is refused
        first, *rest = (self.text.block("question", part) if part in said else [] for part in parts)
        return [*first, *(token for part in rest for token in (self.placeholder, *part)), self.text.ids.bos]

    def cut(self, prompt: str) -> str:
        ids = self.text.encode(prompt)
        return prompt if len(ids) <= self.text.max_text else self.text.decode(ids[: self.text.max_text])

    def decode(self, ids: list[int], special: bool = False) -> str:
        return self.text.tokenizer.decode(ids, skip_special_tokens=not special)

    def to(self, device: torch.device | str | int) -> None:
        move = getattr(self.vae, "to", None)  # an autoencoder without weights has nothing to move
        if move is not None:
            move(device)
