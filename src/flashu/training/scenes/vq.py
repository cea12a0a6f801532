"""Trains the quantized autoencoder of the scenes: a plain one first, then its codebook, then the decoder."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from flashu.models.small_autoencoder import to_tensor
from flashu.models.small_vq import SmallVQ, cells
from flashu.scenes.world import SCENES, World
from flashu.training.scenes.autoencoder import random_images

BATCH = 512  # cells
ROUNDS = 25  # of Lloyd's algorithm


def train_vq(
    path: Path,
    *,
    steps: int,
    log: Callable[[str], object],
    world: World = SCENES,
    start: Path | None = None,
    device: str = "cpu",
) -> SmallVQ:
    """``steps`` without quantizing, as many with it, from the weights in ``start`` if given; saves to ``path``."""
    torch.manual_seed(0)
    model = (SmallVQ.load(start).train().requires_grad_(True) if start else SmallVQ()).to(device)
    examples = mostly_occupied(random_images(20_000, seed=5, world=world)).to(device)
    _fit(model, examples, steps, log, quantized=False)
    with torch.no_grad():
        model.codebook.copy_(_centres(model.encoder(examples[:30_000]), model.codes))
    _fit(model, examples, steps, log, quantized=True)
    model.cpu().save(path)
    return SmallVQ.load(path)


def mostly_occupied(images: Tensor) -> Tensor:
    """uint8 images [n,S,S,3] -> the cells that hold something, and one empty one for each twenty [m,768]."""
    every = cells(to_tensor(images)).flatten(0, 2)
    background = every.median(0).values
    holds = (every - background).abs().amax(1) > 0.1
    chosen = torch.cat((every[holds], every[~holds][: len(every) // 100]))
    return chosen[torch.randperm(len(chosen))]


def _fit(model: SmallVQ, examples: Tensor, steps: int, log: Callable[[str], object], quantized: bool) -> None:
    """Quantized: the codebook and what leads to it stay, the decoder learns what each code stands for."""
    parameters = model.decoder.parameters() if quantized else model.parameters()
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, betas=(0.9, 0.98), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: 0.5 + 0.5 * math.cos(math.pi * s / steps) + 0.005)
    started = time.monotonic()
    for step in range(steps):
        x = examples[torch.randint(len(examples), (BATCH,), device=examples.device)]
        if quantized:
            y = model.decoder(model.codebook[model.nearest(model.encoder(x))])
            loss = F.mse_loss(y, x)
        else:
            z = model.encoder(x)
            y = model.decoder(z + 0.1 * torch.randn_like(z))
            loss = F.mse_loss(y, x) + 1e-3 * (z**2).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 200 == 0 or step == steps - 1:
            psnr = -10 * math.log10(F.mse_loss(y.detach(), x).item() / 4)
            kind = "codes" if quantized else "plain"
            log(f"vq {kind} step {step} psnr {psnr:.1f} dB {time.monotonic() - started:.0f} s")


def _centres(points: Tensor, count: int) -> Tensor:
    """k-means of points [n,d] -> [count,d]; a centre that nothing is near to moves to a random point."""
    centres = points[torch.randperm(len(points), device=points.device)[:count]].clone()
    for _ in range(ROUNDS):
        nearest = torch.cdist(points, centres).argmin(1)
        number = torch.bincount(nearest, minlength=count)
        total = torch.zeros_like(centres).index_add_(0, nearest, points)
        centres = total / number.clamp(min=1)[:, None]
        lost = number == 0
        centres[lost] = points[torch.randint(len(points), (int(lost.sum()),), device=points.device)]
    return centres
