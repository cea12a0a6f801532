"""How far images are from the vanilla model's of the same prompts and seeds: PSNR, SSIM, distance of latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW, SIGMA = 11, 1.5
C1, C2 = 0.01**2, 0.03**2


@dataclass(frozen=True, slots=True)
class Fidelity:
    """Over ``n`` images: PSNR in dB of the pooled error (None: identical), mean SSIM, mean relative latent distance
    ||z - z'|| / ||z'||."""

    n: int
    psnr: float | None
    ssim: float
    latent: float


def fidelity(images: Tensor, vanilla: Tensor, latents: Tensor, vanilla_latents: Tensor) -> Fidelity:
    """Images [B, 3, H, W] in [0, 1] and latents [B, c, h, w] against the vanilla ones."""
    likeness = float(ssim(images, vanilla).mean())
    return Fidelity(len(images), psnr(images, vanilla), likeness, distance(latents, vanilla_latents))


def psnr(images: Tensor, vanilla: Tensor) -> float | None:
    error = float((images.double() - vanilla.double()).square().mean())
    return None if error == 0 else float(-10 * torch.log10(torch.tensor(error)))


def ssim(images: Tensor, vanilla: Tensor) -> Tensor:
    """Structural similarity of each image [B] (Wang et al. 2004: Gaussian window 11, sigma 1.5, valid area)."""
    axis = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    bell = torch.exp(-axis.square() / (2 * SIGMA**2))
    bell = bell / bell.sum()
    window = (bell[:, None] * bell).expand(3, 1, WINDOW, WINDOW)

    def local(x: Tensor) -> Tensor:
        return F.conv2d(x, window, groups=3)

    x, y = images.double(), vanilla.double()
    mean_x, mean_y = local(x), local(y)
    var_x, var_y = local(x * x) - mean_x**2, local(y * y) - mean_y**2
    cov = local(x * y) - mean_x * mean_y
    top = (2 * mean_x * mean_y + C1) * (2 * cov + C2)
    return (top / ((mean_x**2 + mean_y**2 + C1) * (var_x + var_y + C2))).mean(dim=(1, 2, 3))


def distance(latents: Tensor, vanilla: Tensor) -> float:
    flat, full = latents.float().flatten(1), vanilla.float().flatten(1)
    return float(((flat - full).norm(dim=1) / full.norm(dim=1)).mean())


def stacked(latents: Sequence[Tensor | None]) -> Tensor | None:
    """Latents of several images as one tensor, None where any is missing."""
    kept = [z for z in latents if z is not None]
    return torch.stack(kept) if kept and len(kept) == len(latents) else None
