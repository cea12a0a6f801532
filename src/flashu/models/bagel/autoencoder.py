"""FLUX's autoencoder, BAGEL's way from pixels to latents: the original `ae.safetensors`, or a folder of diffusers'."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flashu.errors import CheckpointError, ImageError
from flashu.models.conv_autoencoder import Decoder, Encoder, noise_like
from flashu.models.weights import fill, read_json, read_weights, weight_files, write_weights

FILE = "ae.safetensors"
SIZES_FILE = "ae.json"
"""Beside the file where its sizes are not the original's."""
DIFFUSERS = "AutoencoderKL"


@dataclass(frozen=True)
class AutoencoderSizes:
    """``width``: channels at full size; ``multipliers``: of them on each level; ``blocks``: of the encoder's levels (a
    level of the decoder has one more). Latents are (z - ``shift``) * ``scale``. The defaults are FLUX's."""

    width: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    latent_channels: int = 16
    scale: float = 0.3611
    shift: float = 0.1159

    @classmethod
    def of(cls, data: Mapping[str, Any], where: object) -> AutoencoderSizes:
        """As `asdict` gives them; `CheckpointError` for others."""
        known = {field.name for field in fields(cls)}
        if strange := sorted(data.keys() - known):
            raise CheckpointError(f"{where}: {', '.join(strange)} is unknown; an autoencoder has {', '.join(known)}")
        given = dict(data)
        if "multipliers" in given:
            given["multipliers"] = tuple(given["multipliers"])
        return cls(**given)

    @classmethod
    def of_diffusers(cls, config: Mapping[str, Any], where: object) -> AutoencoderSizes:
        """From the config.json of an `AutoencoderKL`; `CheckpointError` if it is built another way than FLUX's."""
        if (kind := config.get("_class_name", DIFFUSERS)) != DIFFUSERS:
            raise CheckpointError(f"{where}: holds a {kind}, not an {DIFFUSERS}")
        different = [name for name in ("use_quant_conv", "use_post_quant_conv") if config.get(name, True)]
        different += [n for n in ("latents_mean", "latents_std") if config.get(n) is not None]
        widths = config.get("block_out_channels", [64])
        if different or config.get("shift_factor") is None or any(width % widths[0] for width in widths):
            raise CheckpointError(
                f"{where}: an {DIFFUSERS} that is not built like FLUX's ({', '.join(different) or 'its sizes'}); "
                f"give the folder `vae` of FLUX.1, or {FILE}"
            )
        return cls(
            width=widths[0],
            multipliers=tuple(width // widths[0] for width in widths),
            blocks=config.get("layers_per_block", 1),
            latent_channels=config.get("latent_channels", 4),
            scale=config["scaling_factor"],
            shift=config["shift_factor"],
        )


class FluxAutoencoder(nn.Module):
    """Normalised latents; fp32 at both doors, the weights' dtype inside. Keys as in `ae.safetensors`."""

    def __init__(self, sizes: AutoencoderSizes | None = None) -> None:
        super().__init__()
        self.sizes = s = sizes or AutoencoderSizes()
        levels = len(s.multipliers)
        self.encoder = Encoder(s.width, s.multipliers, [s.blocks] * levels, 2 * s.latent_channels)
        self.decoder = Decoder(s.width, s.multipliers, [s.blocks + 1] * levels, s.latent_channels)

    @classmethod
    def load(
        cls,
        source: str | os.PathLike[str],
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> FluxAutoencoder:
        """From `ae.safetensors` or the folder it lies in, or from a diffusers folder (or one with a ``vae`` in it)."""
        path = Path(source).expanduser()
        path = path / FILE if (path / FILE).is_file() else path
        if path.is_file():
            known = path.with_name(SIZES_FILE)
            sizes = AutoencoderSizes.of(read_json(known), known) if known.is_file() else AutoencoderSizes()
            weights = read_weights([path])
        else:
            path = path / "vae" if (path / "vae").is_dir() else path
            if not (path / "config.json").is_file():
                raise CheckpointError(f"{path}: there is no {FILE}, nor an autoencoder of diffusers'")
            sizes = AutoencoderSizes.of_diffusers(read_json(path / "config.json"), path)
            weights = from_diffusers(read_weights(weight_files(path)), len(sizes.multipliers))
        with torch.device("meta"):
            model = cls(sizes)
        fill(model, weights, path, dtype, device)
        return model.eval().requires_grad_(False)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `ae.safetensors`, and `ae.json` with its sizes."""
        (Path(folder) / SIZES_FILE).write_text(json.dumps(asdict(self.sizes), indent=2) + "\n", encoding="utf-8")
        write_weights(self, Path(folder) / FILE)

    @property
    def latent_channels(self) -> int:
        return self.sizes.latent_channels

    @property
    def factor(self) -> int:
        """Pixels per latent, each way."""
        return 2 ** (len(self.sizes.multipliers) - 1)

    @torch.no_grad()
    def encode(
        self,
        pixels: Tensor,
        sample: bool = False,
        generator: torch.Generator | Sequence[torch.Generator | None] | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """pixels [B, 3, H, W] in [-1, 1] -> latents [B, c, H/8, W/8]; the mean, or a sample around it.

        The original always samples. ``generator``: one, or one per image, each drawing its image's noise; ``noise``
        [B, c, H/8, W/8]: the noise itself, instead.
        """
        if pixels.ndim != 4 or pixels.shape[1] != 3 or any(side % self.factor for side in pixels.shape[2:]):
            raise ImageError(f"pixels must be [B, 3, H, W], sides multiples of {self.factor}: {list(pixels.shape)}")
        mean, logvar = self.encoder(pixels.to(self._inside)).float().chunk(2, 1)
        if noise is None and sample:
            each = list(generator) if isinstance(generator, Sequence) else [generator] * len(mean)
            if len(each) != len(mean):
                raise ImageError(f"{len(each)} generators for {len(mean)} images: give one, or one per image")
            noise = noise_like(mean, each)
        if noise is not None:
            mean = mean + (logvar / 2).exp() * noise.to(mean)
        return (mean - self.sizes.shift) * self.sizes.scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """latents [B, c, h, w] -> pixels [B, 3, 8h, 8w], in [-1, 1] but for what the network overshoots."""
        if latents.ndim != 4 or latents.shape[1] != self.latent_channels:
            raise ImageError(f"latents must be [B, {self.latent_channels}, h, w], not {list(latents.shape)}")
        plain = latents.float() / self.sizes.scale + self.sizes.shift
        return self.decoder(plain.to(self._inside)).float()

    @property
    def _inside(self) -> Tensor:
        return self.decoder.conv_in.weight


NAMES = (  # diffusers' to the original's, but for the numbers of the decoder's levels
    (r"^encoder\.down_blocks\.(\d+)\.resnets\.(\d+)\.", r"encoder.down.\1.block.\2."),
    (r"^encoder\.down_blocks\.(\d+)\.downsamplers\.0\.", r"encoder.down.\1.downsample."),
    (r"^decoder\.up_blocks\.(\d+)\.resnets\.(\d+)\.", r"decoder.up.\1.block.\2."),
    (r"^decoder\.up_blocks\.(\d+)\.upsamplers\.0\.", r"decoder.up.\1.upsample."),
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"\.mid_block\.attentions\.0\.group_norm\.", ".mid.attn_1.norm."),
    (r"\.mid_block\.attentions\.0\.to_([qkv])\.", r".mid.attn_1.\1."),
    (r"\.mid_block\.attentions\.0\.to_out\.0\.", ".mid.attn_1.proj_out."),
    (r"\.conv_norm_out\.", ".norm_out."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
)


def from_diffusers(weights: Mapping[str, Tensor], levels: int) -> dict[str, Tensor]:
    """The weights of an `AutoencoderKL` of so many levels by the original's names; diffusers counts the decoder's
    levels the other way round and holds the attention's projections as matrices."""
    found = {}
    for name, value in weights.items():
        for pattern, replacement in NAMES:
            name = re.sub(pattern, replacement, name)
        name = re.sub(r"^decoder\.up\.(\d+)\.", lambda m: f"decoder.up.{levels - 1 - int(m[1])}.", name)
        matrix = value.ndim == 2 and ".attn_1." in name
        found[name] = value[:, :, None, None] if matrix else value
    return found
