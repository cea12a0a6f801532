"""What surrounds the weights: words, the decoder of codes, and how the model is usually run."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from flashu.errors import ImageError
from flashu.models.defaults import GenerationDefaults
from flashu.models.janus.text import Text
from flashu.models.janus.vq import VQ
from flashu.models.pictures import Picture, normalised, opened, to_pil
from flashu.models.video import Video

HALF = (0.5, 0.5, 0.5)
LEAST = 14  # pixels of a narrow picture's short side


@dataclass
class Processor:
    """See `models.protocol.Processor`. ``side``: of a picture that is seen, in pixels; it is scaled to fit, its short
    side ``least`` pixels at least, and padded with its mean colour. ``mean``, ``std``: of the pixels that the tower
    sees. ``top_k``: codes that are drawn from, 1 = the likeliest, 0 = all."""

    text: Text
    vae: VQ | None
    defaults: GenerationDefaults = field(default_factory=GenerationDefaults)
    side: int = 384
    mean: tuple[float, ...] = HALF
    std: tuple[float, ...] = HALF
    top_k: int = 0
    least: int = LEAST

    def pixels(self, image: Picture) -> Tensor:
        """One picture as it is seen [1, 3, side, side]."""
        picture = opened(image)
        scale = self.side / max(picture.size)
        size = (max(round(picture.width * scale), self.least), max(round(picture.height * scale), self.least))
        whole = Image.new("RGB", (self.side, self.side), tuple(int(255 * level) for level in self.mean))
        place = ((self.side - size[0]) // 2, (self.side - size[1]) // 2)
        whole.paste(picture.resize(size, Image.Resampling.BICUBIC), place)
        levels = (normalised(whole) + 1) / 2
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (levels - mean) / std

    def frames(self, visual: Picture | Video) -> list[Tensor]:
        if isinstance(visual, Video):
            raise ImageError("Janus-Pro answers about pictures: give frames of a video as several of them")
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
        if self.vae is not None:
            self.vae.to(device)
