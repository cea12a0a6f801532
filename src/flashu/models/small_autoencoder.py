"""A small convolutional autoencoder: images [B,3,H,W] in [-1,1] <-> normalised latents [B,4,H/8,W/8].

The embedded models use it; a cell of their pictures (16 px) is 2x2 latents."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from flashu.errors import CheckpointError
from flashu.models.weights import fill, read_weights

FILE = "autoencoder.safetensors"
"""Its name in a checkpoint folder."""
LATENT_CHANNELS = 4
DOWNSAMPLE = 8


class _Block(nn.Module):
    """Pre-activation residual block at constant size."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, width), nn.Conv2d(width, width, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(8, width), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(y)))


class SmallAutoencoder(nn.Module):
    """Convolutional, 8x, deterministic; `mean` and `std` [4] are latent statistics of training images."""

    mean: Tensor
    std: Tensor

    def __init__(self, widths: tuple[int, int, int] = (32, 64, 96), channels: int = LATENT_CHANNELS) -> None:
        super().__init__()
        a, b, c = widths
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(2),
            nn.Conv2d(12, a, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(a, b, 4, stride=2, padding=1),
            _Block(b),
            nn.Conv2d(b, c, 4, stride=2, padding=1),
            _Block(c),
            nn.Conv2d(c, channels, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(channels, c, 3, padding=1),
            _Block(c),
            nn.Conv2d(c, 4 * b, 1),
            nn.PixelShuffle(2),
            _Block(b),
            nn.Conv2d(b, 4 * a, 1),
            nn.PixelShuffle(2),
            nn.SiLU(),
            nn.Conv2d(a, a, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(a, 12, 3, padding=1),
            nn.PixelShuffle(2),
        )
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

    def encode(self, x: Tensor) -> Tensor:
        """Images [B,3,H,W] in [-1,1] -> normalised latents [B,4,H/8,W/8]."""
        return (self.encoder(x) - self.mean[:, None, None]) / self.std[:, None, None]

    def decode(self, z: Tensor) -> Tensor:
        """Normalised latents [B,4,h,w] -> images [B,3,8h,8w], clamped to [-1,1]."""
        return self.decoder(z * self.std[:, None, None] + self.mean[:, None, None]).clamp(-1, 1)

    def save(self, path: Path) -> None:
        """Writes bf16 weights; the statistics stay fp32."""
        state = {k: v if k in ("mean", "std") else v.bfloat16() for k, v in self.state_dict().items()}
        path.write_bytes(save({k: v.contiguous() for k, v in state.items()}, {"format": "pt"}))

    @classmethod
    def load(cls, path: Path) -> SmallAutoencoder:
        """Opens what `save` wrote, in fp32 and in eval mode."""
        model = cls()
        model.load_state_dict({k: v.float() for k, v in load_file(path).items()})
        return model.eval().requires_grad_(False)


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


def open_small(folder: Path, device: torch.device | str | None = None) -> PlainAutoencoder:
    """The one in a checkpoint folder; `CheckpointError` if there is none."""
    file = folder / FILE
    if not file.is_file():
        raise CheckpointError(f"{folder}: there is no {FILE}")
    with torch.device("meta"):
        autoencoder = SmallAutoencoder()
    fill(autoencoder, read_weights([file]), file, torch.float32, device)
    return PlainAutoencoder(autoencoder.eval().requires_grad_(False), LATENT_CHANNELS, DOWNSAMPLE)


def to_tensor(images: Tensor) -> Tensor:
    """uint8 [B,H,W,3] -> float [B,3,H,W] in [-1,1]."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """Float [B,3,H,W] in [-1,1] -> uint8 [B,H,W,3], rounded."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
