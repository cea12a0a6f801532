"""Embedding of a flow time."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

FREQUENCIES = 256


class TimestepEmbedder(nn.Module):
    """t in [0, 1] (used as is, not times 1000) -> [B, width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t_B: Tensor) -> Tensor:
        return self.mlp(sinusoid(t_B).to(next(self.mlp.parameters()).dtype))


def sinusoid(t_B: Tensor) -> Tensor:
    """[cos, sin] of t times 128 frequencies from 1 down to nearly 1/10000, in fp32."""
    half = FREQUENCIES // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=t_B.device) / half)
    angles = t_B.float()[:, None] * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=-1)
