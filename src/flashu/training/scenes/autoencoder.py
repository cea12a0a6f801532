"""Trains the scenes autoencoder for a few minutes and stores its latent statistics."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from flashu.models.small_autoencoder import LATENT_CHANNELS, SmallAutoencoder, to_tensor
from flashu.scenes.sampler import FAMILIES, training_scene
from flashu.scenes.world import SCENES, World, render

NOISE = 0.05  # on unit-variance latents while training: neighbouring latents must decode alike


def random_images(n: int, seed: int, world: World = SCENES) -> torch.Tensor:
    """uint8 training renders [n,S,S,3], mostly full scenes."""
    rng = np.random.default_rng(seed)
    families = rng.choice(FAMILIES, n, p=(0.1, 0.15, 0.15, 0.6))
    return torch.from_numpy(render(training_scene(f, rng, world) for f in families))


def train_autoencoder(
    path: Path,
    *,
    steps: int,
    log: Callable[[str], object],
    world: World = SCENES,
    start: Path | None = None,
    device: str = "cpu",
) -> SmallAutoencoder:
    """Trains, from the weights in `start` if given; measures the statistics, saves to `path`."""
    torch.manual_seed(0)
    model = SmallAutoencoder.load(start).train().requires_grad_(True) if start else SmallAutoencoder()
    model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    batch = 1024 // world.tokens
    images = random_images(80_000 // world.side, seed=1, world=world).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1, (s + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * s / steps)) + 0.005
    )
    background = to_tensor(images[:1])[:, :, :1, :1]
    started = time.time()
    for step in range(steps):
        x = to_tensor(images[torch.randint(len(images), (batch,), device=device)])
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device, torch.bfloat16):
            raw = model.encoder(x)
            mean, std = raw.mean((0, 2, 3), keepdim=True), raw.std((0, 2, 3), keepdim=True)
            y = model.decoder(raw + NOISE * std * torch.randn_like(raw))
        # Objects fill a sixth of the picture at most: weigh them up, or the first minutes go to the background.
        weight = 1 + 4 * (x - background).abs().amax(1, keepdim=True).gt(0.02).float()
        loss = (weight * (y.float() - x) ** 2).mean() + 1e-3 * (mean**2 + torch.log(std) ** 2).float().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            psnr = -10 * math.log10(F.mse_loss(y.detach().float(), x).item() / 4)
            log(f"autoencoder step {step} psnr {psnr:.1f} dB {time.time() - started:.0f} s")
    _measure(model.eval(), images[:8192])
    model.cpu().save(path)
    return SmallAutoencoder.load(path)


@torch.inference_mode()
def _measure(model: SmallAutoencoder, images: torch.Tensor) -> None:
    """Stores per-channel mean and std of the raw latents of training scenes."""
    raw = torch.cat([model.encoder(to_tensor(part)) for part in images.split(512)])
    model.mean.copy_(raw.mean((0, 2, 3)))
    model.std.copy_(raw.std((0, 2, 3)))
    assert raw.shape[1] == LATENT_CHANNELS
