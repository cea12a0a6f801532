"""The autoencoders a checkpoint folder can hold, by the name its config.json gives them."""

from __future__ import annotations

from pathlib import Path

import torch

from flashu.errors import CheckpointError
from flashu.models.pictures import Autoencoder
from flashu.models.showo2.vae import ORIGINAL_NAME, WanAutoencoder
from flashu.models.small_autoencoder import FILE as SCENES_FILE
from flashu.models.small_autoencoder import PlainAutoencoder, open_small

WAN, SCENES = "wan", "scenes"
WAN_FOLDER = "vae"


def open_autoencoder(kind: str, folder: Path, device: torch.device | str | None = None) -> Autoencoder:
    """The autoencoder that lies in a folder of our format."""
    if kind == WAN:
        return WanAutoencoder.load(folder / WAN_FOLDER, device=device)
    if kind != SCENES:
        raise CheckpointError(f"{folder}: the autoencoder {kind!r} is unknown; there are {WAN!r} and {SCENES!r}")
    return open_small(folder, device)


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
