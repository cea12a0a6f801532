"""The autoencoders a checkpoint folder can hold, by the name its config.json gives them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flashu.errors import CheckpointError
from flashu.models.pictures import Autoencoder
from flashu.models.showo2.vae import ORIGINAL_NAME, WanAutoencoder
from flashu.models.small_autoencoder import DOWNSAMPLE, LATENT_CHANNELS, SmallAutoencoder
from flashu.models.small_autoencoder import FILE as SCENES_FILE
from flashu.models.weights import fill, read_weights

WAN, SCENES = "wan", "scenes"
WAN_FOLDER = "vae"


@dataclass(frozen=True)
class PlainAutoencoder:
    """A module with ``encode`` and ``decode`` alone: its posterior has no variance, so a sample is the mean."""

    module: Any
    latent_channels: int
    factor: int

    def encode(self, pixels: Tensor, sample: bool = False, generator: torch.Generator | None = None) -> Tensor:
        return self.module.encode(pixels)

    def decode(self, latents: Tensor) -> Tensor:
        return self.module.decode(latents)

    def to(self, *args: Any, **kwargs: Any) -> PlainAutoencoder:
        self.module.to(*args, **kwargs)
        return self


def open_autoencoder(kind: str, folder: Path, device: torch.device | str | None = None) -> Autoencoder:
    """The autoencoder that lies in a folder of our format."""
    if kind == WAN:
        return WanAutoencoder.load(folder / WAN_FOLDER, device=device)
    if kind != SCENES:
        raise CheckpointError(f"{folder}: the autoencoder {kind!r} is unknown; there are {WAN!r} and {SCENES!r}")
    file = folder / SCENES_FILE
    if not file.is_file():
        raise CheckpointError(f"{folder}: there is no {SCENES_FILE}")
    with torch.device("meta"):
        autoencoder = SmallAutoencoder()
    fill(autoencoder, read_weights([file]), file, torch.float32, device)
    return PlainAutoencoder(autoencoder.eval().requires_grad_(False), LATENT_CHANNELS, DOWNSAMPLE)


def find_wan(folder: Path) -> Path | None:
    """The Wan autoencoder that someone put into an official checkpoint's folder."""
    for path in (folder / ORIGINAL_NAME, folder / WAN_FOLDER):
        if path.exists():
            return path
    return None


def save_autoencoder(autoencoder: Autoencoder, folder: Path) -> str:
    """Writes it into a folder of our format; returns its name for config.json."""
    if isinstance(autoencoder, WanAutoencoder):
        autoencoder.save(folder / WAN_FOLDER)
        return WAN
    if isinstance(autoencoder, PlainAutoencoder):
        autoencoder.module.save(folder / SCENES_FILE)
        return SCENES
    raise TypeError(f"a {type(autoencoder).__name__} cannot be saved: there is no format for it")
