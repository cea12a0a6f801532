"""How pictures in questions are shown to a model trained with CLIP: features of its vision tower."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flashu.errors import CheckpointError, FlashUError
from flashu.models.hub import checkpoint_folder
from flashu.models.pictures import Picture, pixels

HUB_ID = "openai/clip-vit-large-patch14-336"
LAYER = -2  # the hidden states that are read
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class ClipFeatures:
    """``tower``: transformers' `CLIPVisionModel`; ``name``: where it came from."""

    tower: Any
    name: str = HUB_ID

    @classmethod
    def load(cls, source: str | os.PathLike[str] = HUB_ID, device: torch.device | str | None = None) -> ClipFeatures:
        """From a folder or hub id; `FlashUError` without transformers, `CheckpointError` for another kind of folder."""
        try:
            from transformers import CLIPVisionModel
        except ImportError as e:
            raise FlashUError(
                "showing pictures by CLIP needs transformers: pip install '.[clip]' in a clone of flashu"
            ) from e
        folder = checkpoint_folder(source, ("config.json", "*.safetensors", "*.bin"))
        try:
            tower: Any = CLIPVisionModel.from_pretrained(folder)
        except (OSError, ValueError, RuntimeError) as e:
            raise CheckpointError(f"{folder}: not a CLIP vision tower ({str(e).splitlines()[0]})") from e
        return cls(tower.to(device or "cpu").eval().requires_grad_(False), str(source))

    @property
    def size(self) -> int:
        """Channels of a feature."""
        return self.tower.config.hidden_size

    @property
    def count(self) -> int:
        """Features of a picture."""
        return (self.tower.config.image_size // self.tower.config.patch_size) ** 2

    @torch.inference_mode()
    def __call__(self, images: list[Picture]) -> Tensor:
        """Features [B, F, c] of pictures: patches of the last layer but one, without the class token."""
        side = self.tower.config.image_size
        shown = torch.cat([pixels(image, side, side) for image in images]).to(self.tower.device)
        mean, std = (torch.tensor(x, device=shown.device)[:, None, None] for x in (MEAN, STD))
        normed = (((shown + 1) / 2 - mean) / std).to(self.tower.dtype)
        return self.tower(normed, output_hidden_states=True).hidden_states[LAYER][:, 1:]

    def to(self, *args: Any, **kwargs: Any) -> ClipFeatures:
        self.tower.to(*args, **kwargs)
        return self
