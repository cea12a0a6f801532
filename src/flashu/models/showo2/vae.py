"""The Wan2.1 autoencoder of the official checkpoints, one frame at a time, around diffusers' implementation."""

from __future__ import annotations

import os
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from flashu.errors import CheckpointError, ImageError
from flashu.models.hub import checkpoint_folder
from flashu.models.weights import fill, read_json, read_weights, weight_files

HUB_ID = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
ORIGINAL_NAME = "Wan2.1_VAE.pth"


class WanAutoencoder:
    """Normalised latents (x - mean) / std per channel; fp32 at both doors, the weights' dtype inside.

    The original rounds mean and std to bf16 in bf16 runs; here they stay fp32.
    """

    def __init__(self, vae: Any) -> None:
        """``vae``: a diffusers ``AutoencoderKLWan``."""
        self.vae = vae.eval()
        self._one_at_a_time = Lock()  # diffusers keeps its convolution caches in the module during a call

    @classmethod
    def load(
        cls,
        source: str | os.PathLike[str] = HUB_ID,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        **config: Any,
    ) -> WanAutoencoder:
        """From ``Wan2.1_VAE.pth``, a diffusers folder (or one with a ``vae`` folder in it), or a hub id.

        ``config`` changes the sizes diffusers assumes for a ``.pth``, which does not state its own.
        """
        wan, convert = _diffusers()
        path = Path(source).expanduser()
        if path.is_file():
            weights = convert(read_weights([path]))
        else:
            if config:
                raise CheckpointError(f"{source} states its own sizes: leave out {', '.join(config)}")
            path = checkpoint_folder(source, ("vae/config.json", "vae/*.safetensors", "vae/*.index.json"))
            path = path / "vae" if (path / "vae").is_dir() else path
            config, weights = _sizes(path), read_weights(weight_files(path))
        try:
            with torch.device("meta"):
                vae = wan.from_config(config) if config else wan()
        except (TypeError, ValueError, RuntimeError) as e:
            raise CheckpointError(f"{path}: diffusers cannot build an autoencoder from its config ({e})") from e
        fill(vae, weights, path, dtype, device)
        return cls(vae)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """As a diffusers folder."""
        self.vae.save_pretrained(folder, safe_serialization=True)

    @property
    def latent_channels(self) -> int:
        return self.vae.config.z_dim

    @property
    def factor(self) -> int:
        return self.vae.config.scale_factor_spatial

    @torch.no_grad()
    def encode(self, pixels: Tensor, sample: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """pixels [B, 3, H, W] in [-1, 1] -> latents [B, c, H/8, W/8].

        By default the mean: the same image always gives the same latents. ``sample`` adds the posterior's noise as
        the original does by default, where the noise is not divided by std.
        """
        if pixels.ndim != 4 or pixels.shape[1] != 3 or any(side % self.factor for side in pixels.shape[2:]):
            raise ImageError(f"pixels must be [B, 3, H, W], sides multiples of {self.factor}: {list(pixels.shape)}")
        with self._one_at_a_time:
            posterior = self.vae.encode(self._inside(pixels)).latent_dist
        mean, std = self._statistics()
        latents = (posterior.mean.float() - mean) / std
        if sample:
            # the noise is drawn on the generator's device, so that a seed means the same everywhere
            device = generator.device if generator is not None else latents.device
            noise = torch.randn(latents.shape, generator=generator, device=device).to(latents.device)
            latents = latents + posterior.std.float() * noise
        return latents[:, :, 0]

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """latents [B, c, h, w] -> pixels [B, 3, 8h, 8w] in [-1, 1]."""
        if latents.ndim != 4 or latents.shape[1] != self.latent_channels:
            raise ImageError(f"latents must be [B, {self.latent_channels}, h, w], not {list(latents.shape)}")
        mean, std = self._statistics()
        plain = latents.to(mean)[:, :, None] * std + mean
        with self._one_at_a_time:
            return self.vae.decode(plain.to(self.vae.dtype), return_dict=False)[0][:, :, 0].float()

    def enable_tiling(self, **sizes: int) -> None:
        """Large images in overlapping, blended tiles: less memory, nearly the same pixels (sizes as in diffusers)."""
        self.vae.enable_tiling(**sizes)

    def enable_slicing(self) -> None:
        """One image of a batch after another: less memory, the same pixels."""
        self.vae.enable_slicing()

    def to(self, *args: Any, **kwargs: Any) -> WanAutoencoder:
        self.vae.to(*args, **kwargs)
        return self

    def _inside(self, pixels: Tensor) -> Tensor:
        return pixels.to(self.vae.device, self.vae.dtype)[:, :, None]

    def _statistics(self) -> tuple[Tensor, Tensor]:
        config = self.vae.config
        mean, std = (torch.tensor(v, device=self.vae.device) for v in (config.latents_mean, config.latents_std))
        return mean.view(1, -1, 1, 1, 1), std.view(1, -1, 1, 1, 1)


def _sizes(folder: Path) -> dict[str, Any]:
    config = read_json(folder / "config.json")
    if config.get("_class_name", "AutoencoderKLWan") != "AutoencoderKLWan":
        raise CheckpointError(f"{folder}: holds a {config['_class_name']}, not an AutoencoderKLWan")
    return config


def _diffusers() -> tuple[Any, Any]:
    try:
        from diffusers import AutoencoderKLWan
        from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
    except ImportError as e:
        raise CheckpointError(
            'the Wan2.1 autoencoder needs diffusers: pip install ".[wan]" in a clone of flashu'
        ) from e
    return AutoencoderKLWan, convert_wan_vae_to_diffusers
