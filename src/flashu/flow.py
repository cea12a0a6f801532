"""Flow matching: the time grid, guidance and the Euler step. t = 0 is noise, t = 1 is data."""

from __future__ import annotations

import torch
from torch import Tensor


def grid(forwards: int, shift: float) -> Tensor:
    """forwards + 1 time points from 0 to 1 (fp32), denser near the noise end for shift > 1."""
    if forwards < 1:
        raise ValueError(f"a generation needs at least one forward, got {forwards}")
    u = torch.linspace(0, 1, forwards + 1)
    return u / (u + shift - shift * u)


def noise(shape: tuple[int, ...], seed: int) -> Tensor:
    """Standard normal latents of one image, fp32, the same on every device."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance: v_u + s (v_c - v_u)."""
    return unconditional + scale * (conditional - unconditional)


def euler(z: Tensor, velocity: Tensor, dt: float) -> Tensor:
    """One Euler step, integrated in the latents' own dtype (fp32)."""
    return z + dt * velocity.to(z.dtype)
