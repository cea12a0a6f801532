"""The segments of BAGEL's rows. All tokens of a picture share one rotary position; the next segment has the next."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from flashu.models.bagel.config import BagelConfig
from flashu.models.bagel.content import Latents, Markers, Seen, Words
from flashu.models.bagel.experts import GEN, UND
from flashu.runtime.layout import Segment, TokenLayout


def words(ids: Sequence[int]) -> Segment:
    """Causal text."""
    count = len(ids)
    layout = TokenLayout.causal([count], ((UND, 0, count),))
    return Segment(Words(tuple(ids)), layout, count, ("words", *ids), ids=tuple(ids))


def seen(config: BagelConfig, pixels: Tensor, markers: Markers) -> Segment:
    """A picture [3, H, W] as the ViT sees it."""
    size = config.vit.patch_size
    count = (pixels.shape[-2] // size) * (pixels.shape[-1] // size)
    layout = replace(_block(count + 2, slice(1, count + 1)), spans=((UND, 0, count + 2),))
    return Segment(Seen(pixels, markers), layout, 1, ("seen", id(pixels)))


def shown(config: BagelConfig, latents: Tensor, markers: Markers) -> Segment:
    """Clean latents [z, h, w], which later tokens see."""
    return _latents(Latents(latents, 0.0, markers), block_layout(config, latents.shape[-2], latents.shape[-1]), latents)


def drawn(
    layout: TokenLayout, latents: Tensor, time: float, markers: Markers, scales: tuple[float, float] | None = None
) -> Segment:
    """Latents at ``time``, to be drawn; ``layout`` as of `block_layout`, ``scales`` as of `Latents`."""
    return _latents(Latents(latents, time, markers, scales), layout, None)


def block_layout(config: BagelConfig, height: int, width: int) -> TokenLayout:
    """Of latents of ``height`` x ``width`` cells and their markers."""
    count = (height // config.latent_patch_size) * (width // config.latent_patch_size)
    return replace(_block(count + 2, slice(0, count)), spans=((GEN, 0, count), (UND, count, count + 2)))


def _latents(content: Latents, layout: TokenLayout, key: Tensor | None) -> Segment:
    known: Hashable = None if key is None else ("latents", id(key))
    return Segment(content, layout, 1, known, read=range(layout.shape[1] - 2))


def _block(length: int, visual: slice) -> TokenLayout:
    layout = TokenLayout.causal([length]).block(0, length)
    at = torch.zeros_like(layout.visual)
    at[:, visual] = True
    return replace(layout, position=torch.zeros_like(layout.position), visual=at)
