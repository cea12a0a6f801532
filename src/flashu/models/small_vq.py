"""A small vector-quantized autoencoder: images [B,3,H,W] in [-1,1] <-> codes [B,H/16,W/16], one for each cell of 16 px.

The embedded models that draw by codes use it. A code depends on its own cell only, and so do the cell's pixels."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from flashu.errors import CheckpointError
from flashu.models.weights import fill, read_weights

FILE = "vq.safetensors"
"""Its name in a checkpoint folder."""
CODES = 256
FACTOR = 16
DIM = 8


class SmallVQ(nn.Module):
    """Two perceptrons over the pixels of a cell; between them the nearest of ``codes`` vectors of ``DIM`` numbers."""

    codebook: Tensor
    factor = FACTOR

    def __init__(self, codes: int = CODES, widths: tuple[int, int] = (128, 192)) -> None:
        super().__init__()
        narrow, wide = widths
        pixels = 3 * FACTOR**2
        self.encoder = nn.Sequential(
            nn.Linear(pixels, narrow), nn.SiLU(), nn.Linear(narrow, narrow), nn.SiLU(), nn.Linear(narrow, DIM)
        )
        self.decoder = nn.Sequential(
            nn.Linear(DIM, narrow), nn.SiLU(), nn.Linear(narrow, wide), nn.SiLU(), nn.Linear(wide, pixels)
        )
        self.register_buffer("codebook", torch.zeros(codes, DIM))

    @property
    def codes(self) -> int:
        return len(self.codebook)

    def nearest(self, latents: Tensor) -> Tensor:
        """Latents [..., DIM] -> codes [...]."""
        return torch.cdist(latents.flatten(0, -2), self.codebook).argmin(-1).view(latents.shape[:-1])

    def encode(self, pixels: Tensor) -> Tensor:
        """Images [B,3,H,W] in [-1,1], both sides multiples of 16 -> codes int64 [B,H/16,W/16]."""
        return self.nearest(self.encoder(cells(pixels.to(self.codebook))))

    def decode(self, codes: Tensor) -> Tensor:
        """Codes [B,h,w] -> images [B,3,16h,16w], clamped to [-1,1]."""
        flat = self.decoder(self.codebook[codes]).permute(0, 3, 1, 2)
        return nn.functional.pixel_shuffle(flat, FACTOR).clamp(-1, 1)

    def save(self, path: Path) -> None:
        """Writes bf16 weights; the codebook stays fp32."""
        state = {k: v if k == "codebook" else v.bfloat16() for k, v in self.state_dict().items()}
        path.write_bytes(save({k: v.contiguous() for k, v in state.items()}, {"format": "pt"}))

    @classmethod
    def load(cls, path: Path) -> SmallVQ:
        """Opens what `save` wrote, in fp32 and in eval mode; `CheckpointError` for anything else."""
        state = {name: value.float() for name, value in read_weights([path]).items()}
        if "codebook" not in state or state["codebook"].ndim != 2:
            raise CheckpointError(f"{path}: holds no codebook; is it an image tokenizer of an embedded model?")
        model = cls(len(state["codebook"]))
        fill(model, state, path)
        return model.eval().requires_grad_(False)


def cells(pixels: Tensor) -> Tensor:
    """Images [B,3,H,W] -> the numbers of each cell [B,H/16,W/16,768]."""
    return nn.functional.pixel_unshuffle(pixels, FACTOR).permute(0, 2, 3, 1)
