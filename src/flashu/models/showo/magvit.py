"""MAGVIT-v2, Show-o's way from pixels to codes: one bit per channel, no table to look up."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flashu.errors import CheckpointError, ImageError
from flashu.models.conv_autoencoder import Decoder, Encoder
from flashu.models.hub import checkpoint_folder
from flashu.models.weights import fill, read_weights, weight_files

HUB_ID = "showlab/magvitv2"


class Bits(nn.Module):
    """Codes as the signs of ``bits`` channels, the first the most significant. Its two tables are constants, which the
    official file nevertheless holds."""

    embedding: Tensor
    power_vals: Tensor

    def __init__(self, bits: int) -> None:
        super().__init__()
        powers = 2 ** torch.arange(bits - 1, -1, -1)
        codes = torch.arange(2**bits)[:, None]
        self.register_buffer("embedding", (codes // powers % 2).float() * 2 - 1)
        self.register_buffer("power_vals", powers)

    def codes(self, z: Tensor) -> Tensor:
        """z [B, bits, h, w] -> codes [B, h w] in raster order; a bit is 1 where z > 0."""
        return ((z > 0) * self.power_vals[:, None, None]).sum(1).flatten(1)

    def vectors(self, codes: Tensor) -> Tensor:
        """Codes [...] -> [..., bits], each -1 or 1."""
        return self.embedding[codes]


class CodeEncoder(Encoder):
    """Pixels [B, 3, H, W] -> [B, ``bits``, h, w], whose signs are the code."""

    def __init__(self, width: int, multipliers: Sequence[int], blocks: Sequence[int], bits: int) -> None:
        super().__init__(width, multipliers, blocks, bits)
        self.quant_conv = nn.Conv2d(bits, bits, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.quant_conv(super().forward(pixels))


class CodeDecoder(Decoder):
    """[B, ``bits``, h, w], each -1 or 1, -> pixels [B, 3, H, W]."""

    def __init__(self, width: int, multipliers: Sequence[int], blocks: Sequence[int], bits: int) -> None:
        super().__init__(width, multipliers, blocks, bits)
        self.post_quant_conv = nn.Conv2d(bits, bits, 1)

    def forward(self, latents: Tensor) -> Tensor:
        return super().forward(self.post_quant_conv(latents))


class MagVit(nn.Module):
    """Pixels to codes and back; the weights' dtype inside. Keys as in the official file; the defaults are its sizes.

    ``encoder``, ``decoder``: (multipliers of ``width``, residual blocks) of each level, from the pixels on.
    """

    def __init__(
        self,
        width: int = 128,
        bits: int = 13,
        encoder: tuple[Sequence[int], Sequence[int]] = ((1, 2, 2, 4, 4), (4, 3, 4, 3, 4)),
        decoder: tuple[Sequence[int], Sequence[int]] = ((1, 1, 2, 2, 4), (4, 4, 3, 4, 3)),
    ) -> None:
        super().__init__()
        if len(encoder[0]) != len(decoder[0]):
            raise ValueError(f"{len(encoder[0])} levels down and {len(decoder[0])} up: give as many")
        self.bits, self.factor = bits, 2 ** (len(encoder[0]) - 1)
        self.encoder, self.decoder = CodeEncoder(width, *encoder, bits), CodeDecoder(width, *decoder, bits)
        self.quantize = Bits(bits)

    @classmethod
    def load(
        cls,
        source: str | os.PathLike[str] = HUB_ID,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> MagVit:
        """From a folder with the official weights (`pytorch_model.bin`, or safetensors), or a hub id."""
        folder = checkpoint_folder(source, ("*.bin", "*.safetensors", "*.index.json"))
        with torch.device("meta"):
            model = cls()
        fill(model, read_weights(weight_files(folder)), folder, dtype, device)
        own, stored = Bits(model.bits).state_dict(), model.quantize.state_dict()
        if different := [name for name, value in own.items() if not torch.equal(stored[name].to(value), value)]:
            raise CheckpointError(f"{folder}: quantize.{different[0]} is not the table of signs: is it a MAGVIT-v2?")
        return model.eval().requires_grad_(False)

    @property
    def codes(self) -> int:
        """How many there are."""
        return 2**self.bits

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """pixels [B, 3, H, W] in [-1, 1] -> codes [B, N], N = H W / factor^2, in raster order."""
        if pixels.ndim != 4 or pixels.shape[1] != 3 or any(side % self.factor for side in pixels.shape[2:]):
            raise ImageError(f"pixels must be [B, 3, H, W], sides multiples of {self.factor}: {list(pixels.shape)}")
        return self.quantize.codes(self.encoder(pixels.to(self.encoder.conv_in.weight)))

    @torch.no_grad()
    def decode(self, codes: Tensor, shape: tuple[int, int] | None = None) -> Tensor:
        """codes [B, N] -> pixels [B, 3, H, W] fp32, in [-1, 1] but for what the network overshoots; ``shape``: rows and
        columns of codes, None = a square."""
        side = int(codes.shape[-1] ** 0.5)
        rows, columns = shape or (side, side)
        if codes.ndim != 2 or codes.shape[1] != rows * columns or codes.is_floating_point():
            raise ImageError(f"codes must be whole [B, {rows * columns}], not {codes.dtype} {list(codes.shape)}")
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self.codes:
            raise ImageError(f"codes must lie in 0 to {self.codes - 1}: {int(codes.min())} to {int(codes.max())}")
        vectors = self.quantize.vectors(codes).unflatten(1, (rows, columns)).permute(0, 3, 1, 2)
        return self.decoder(vectors.to(self.decoder.conv_in.weight)).float()
