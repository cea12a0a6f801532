"""What a Show-o2 segment holds: text and images in turn."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

if TYPE_CHECKING:
    from flashu.models.showo2.model import ShowO2


@dataclass(frozen=True, eq=False)
class Words:
    """Text tokens."""

    ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def key(self) -> Hashable:
        return self.ids


@dataclass(frozen=True, eq=False)
class Shown:
    """A time token, then the tokens of an image (latents [c, h, w]) or of a video's frames ([T, c, h, w]).

    ``e_t`` [1, d], ``token`` [1, h]: the time, embedded for the head and for the decoder. ``count``: image tokens.
    """

    latents: Tensor
    e_t: Tensor
    token: Tensor
    count: int

    def __len__(self) -> int:
        return self.count + 1

    @property
    def key(self) -> Hashable:
        return "image", id(self.latents)


@dataclass(frozen=True, eq=False)
class Embedded:
    """Tokens that are embedded already [S, h]."""

    x: Tensor

    def __len__(self) -> int:
        return len(self.x)

    @property
    def key(self) -> Hashable:
        return "embedded", id(self.x)


Part: TypeAlias = Words | Shown | Embedded


@dataclass(frozen=True, eq=False)
class Row:
    """The tokens of one segment."""

    parts: tuple[Part, ...]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def images(self) -> Iterator[Shown]:
        return (part for part in self.parts if isinstance(part, Shown))

    def placed(self) -> Iterator[tuple[int, Part]]:
        """Every part and where it begins."""
        at = 0
        for part in self.parts:
            yield at, part
            at += len(part)


def embed_rows(model: ShowO2, rows: Sequence[Row]) -> list[Tensor]:
    """Embedded tokens [S, h] of each row; images of one size go through together, each once."""
    stills: dict[tuple[int, ...], dict[int, Tensor]] = {}
    blocks: dict[int, Tensor] = {}
    for image in (image for row in rows for image in row.images()):
        latents = image.latents
        if latents.ndim == 3:
            stills.setdefault(tuple(latents.shape), {})[id(latents)] = latents
        elif id(latents) not in blocks:
            blocks[id(latents)] = model.embed_frames(latents.to(model.device))
    for group in stills.values():
        embedded = model.embed_latent(torch.stack(list(group.values())).to(model.device))
        blocks |= zip(group, embedded, strict=True)

    def tokens(part: Part) -> Tensor:
        if isinstance(part, Embedded):
            return part.x
        if isinstance(part, Words):
            return model.embed_tokens(torch.tensor(part.ids, dtype=torch.long, device=model.device))
        return torch.cat((part.token, blocks[id(part.latents)]))

    return [torch.cat([tokens(part) for part in row.parts]) for row in rows]


def modulation(rows: Sequence[Sequence[Row]], width: int) -> tuple[Tensor | None, Tensor | None]:
    """How the head's blocks modulate rows of ``width`` tokens, each of several segments: the time embedding [1 or R, d]
    ([R, S, d] where it differs by position; None without images), and which tokens are an image's (bool [R, S, 1]; None
    = all)."""
    spans = [[(at, len(part), part.e_t) for at, part in _placed(row) if isinstance(part, Shown)] for row in rows]
    times = [e_t for row in spans for _, _, e_t in row]
    if not times:
        return None, None
    image: Tensor | None = None
    if not all(row and row[0][:2] == (0, width) for row in spans):
        image = torch.zeros(len(rows), width, 1, dtype=torch.bool)
        for n, row in enumerate(spans):
            for at, length, _ in row:
                image[n, at : at + length] = True
        image = image.to(times[0].device)
    if all(e_t is times[0] for e_t in times):
        return times[0], image
    if all(len(row) == 1 for row in spans):
        return torch.cat(times), image
    by_position = times[0].new_zeros(len(rows), width, times[0].shape[-1])
    for n, row in enumerate(spans):
        for at, length, e_t in row:
            by_position[n, at : at + length] = e_t
    return by_position, image


def _placed(rows: Sequence[Row]) -> Iterator[tuple[int, Part]]:
    start = 0
    for row in rows:
        for at, part in row.placed():
            yield start + at, part
        start += len(row)
