"""The image tokenizers a checkpoint folder can hold, by the name its config.json gives them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flashu.errors import CheckpointError
from flashu.models.showo.magvit import MagVit
from flashu.models.showo.processor import Codec
from flashu.models.small_vq import FILE, SmallVQ
from flashu.models.weights import write_weights

MAGVIT, CELLS = "magvit", "cells"


@dataclass(frozen=True)
class CellCodes:
    """A `SmallVQ`, whose codes come in rows and columns, as a `Codec`."""

    module: SmallVQ

    @property
    def factor(self) -> int:
        return self.module.factor

    def encode(self, pixels: Tensor) -> Tensor:
        return self.module.encode(pixels).flatten(1)

    def decode(self, codes: Tensor, shape: tuple[int, int] | None = None) -> Tensor:
        side = round(codes.shape[1] ** 0.5)
        return self.module.decode(codes.unflatten(1, shape or (side, side)))

    def to(self, *args: Any, **kwargs: Any) -> CellCodes:
        self.module.to(*args, **kwargs)
        return self


def open_codec(kind: str, folder: Path, device: torch.device | str | None = None) -> Codec:
    """The image tokenizer that lies in a folder of our format."""
    if kind == MAGVIT:
        return MagVit.load(folder / MAGVIT, device=device)
    if kind != CELLS:
        raise CheckpointError(f"{folder}: the image tokenizer {kind!r} is unknown; there are {MAGVIT!r} and {CELLS!r}")
    file = folder / FILE
    if not file.is_file():
        raise CheckpointError(f"{folder}: there is no {FILE}")
    return CellCodes(SmallVQ.load(file).to(device or "cpu"))


def save_codec(codec: Codec, folder: Path) -> str:
    """Writes it into a folder of our format; returns its name for config.json."""
    if isinstance(codec, MagVit):
        (folder / MAGVIT).mkdir(exist_ok=True)
        write_weights(codec, folder / MAGVIT / "model.safetensors")
        return MAGVIT
    if isinstance(codec, CellCodes):
        codec.module.save(folder / FILE)
        return CELLS
    raise TypeError(f"a {type(codec).__name__} cannot be saved: there is no format for it")
