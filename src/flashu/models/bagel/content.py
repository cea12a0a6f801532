"""What a BAGEL segment holds: text, a picture as the ViT sees it, or a picture as latents at a flow time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

if TYPE_CHECKING:
    from flashu.models.bagel.model import Bagel

Markers: TypeAlias = "tuple[int, int]"
"""Ids of the tokens that stand around a picture."""


@dataclass(frozen=True, eq=False)
class Words:
    """Text tokens."""

    ids: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Seen:
    """A picture for the ViT: pixels [3, H, W] in [-1, 1]. Its tokens: marker, patches in reading order, marker."""

    pixels: Tensor
    markers: Markers


@dataclass(frozen=True, eq=False)
class Latents:
    """A picture as latents [z, h, w] at flow time ``time``, 0 = clean. Its tokens: latents in reading order, then both
    markers: tokens of one expert lie together, and no order is seen inside a block. ``scales``: guidance of the text
    and of the pictures that an adapter is to draw with."""

    latents: Tensor
    time: float
    markers: Markers
    scales: tuple[float, float] | None = None


Content: TypeAlias = Words | Seen | Latents


def embed_contents(model: Bagel, contents: Sequence[Content]) -> list[Tensor]:
    """Embedded tokens [S, h] of each; pictures of one size go through together, each once."""
    seen: dict[tuple[int, ...], dict[int, Tensor]] = {}
    drawn: dict[tuple[object, ...], dict[int, Latents]] = {}
    for content in contents:
        if isinstance(content, Seen):
            seen.setdefault(tuple(content.pixels.shape), {})[id(content.pixels)] = content.pixels
        elif isinstance(content, Latents):
            key = (*content.latents.shape, content.scales is None)
            drawn.setdefault(key, {})[id(content)] = content
    blocks: dict[int, Tensor] = {}
    for pictures in seen.values():
        blocks |= zip(pictures, model.embed_pixels(torch.stack(list(pictures.values())).to(model.device)), strict=True)
    for group in drawn.values():
        latents = torch.stack([content.latents for content in group.values()]).to(model.device)
        times = torch.tensor([content.time for content in group.values()], device=model.device)
        given = [content.scales for content in group.values() if content.scales is not None]
        scales = torch.tensor(given, device=model.device) if given else None
        blocks |= zip(group, model.embed_latents(latents, times, scales), strict=True)

    def tokens(content: Content) -> Tensor:
        ids = content.ids if isinstance(content, Words) else content.markers
        text = model.embed_tokens(torch.tensor(ids, dtype=torch.long, device=model.device))
        if isinstance(content, Words):
            return text
        if isinstance(content, Seen):
            return torch.cat((text[:1], blocks[id(content.pixels)], text[1:]))
        return torch.cat((blocks[id(content)], text))

    return [tokens(content) for content in contents]
