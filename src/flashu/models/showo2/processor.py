"""What surrounds the weights: words, the autoencoder, and how the model is usually run."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from flashu.models.defaults import GenerationDefaults
from flashu.models.pictures import Autoencoder, Picture, pixels, to_pil
from flashu.models.showo2.text import Text
from flashu.models.video import Video


@dataclass
class Processor:
    """See `models.protocol.Processor`."""

    text: Text
    vae: Autoencoder | None
    defaults: GenerationDefaults = field(default_factory=GenerationDefaults)

    def pixels(
        self, image: Picture, height: int | None = None, width: int | None = None, whole: bool = False
    ) -> Tensor:
        """One picture -> [1, 3, H, W] in [-1, 1]; see :func:`pixels`. Sizes default to the checkpoint's."""
        return pixels(image, height or self.defaults.height, width or self.defaults.width, whole)

    def frames(self, visual: Picture | Video) -> list[Tensor]:
        if not isinstance(visual, Video):
            return [self.pixels(visual)]
        distinct = {id(frame): frame for frame in visual.frames}
        shown = {key: self.pixels(frame, whole=True) for key, frame in distinct.items()}
        return [shown[id(frame)] for frame in visual.frames]

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
        if not images:
            return self.text.message(text)
        first, *rest = self.text.question_parts(text, images)
        return first + [token for part in rest for token in (self.placeholder, *part)]

    def cut(self, prompt: str) -> str:
        """As the authors' scripts cut it."""
        ids = self.text.encode(prompt)
        return prompt if len(ids) <= self.text.max_text else self.text.decode(ids[: self.text.max_text])

    def decode(self, ids: list[int], special: bool = False) -> str:
        return self.text.tokenizer.decode(ids, skip_special_tokens=not special)

    def to(self, device: torch.device | str | int) -> None:
        move = getattr(self.vae, "to", None)  # an autoencoder without weights has nothing to move
        if move is not None:
            move(device)
