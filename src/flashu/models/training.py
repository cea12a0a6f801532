"""What training on scenes asks of a family: examples to make rows of, the rows, and what comes of a forward over them.

A row is parts of tokens in a fixed order; the parts say who sees whom and what is to be predicted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

Ids: TypeAlias = "list[int]"


@dataclass(frozen=True)
class Drawing:
    """A picture to draw; no ``text``: without a prompt, for guidance."""

    text: Ids
    drawn: int

    @property
    def shown(self) -> None:
        return None


@dataclass(frozen=True)
class Asking:
    """Several questions about one picture, each with its answer."""

    shown: int
    asks: list[tuple[Ids, Ids]]

    @property
    def drawn(self) -> None:
        return None


@dataclass(frozen=True)
class Editing:
    """A picture to draw of another one and an instruction. ``without``: what is left out, for guidance ("text", and
    how the other picture is shown: "latents", "pixels")."""

    shown: int
    text: Ids
    drawn: int
    without: frozenset[str]


Example = Drawing | Asking | Editing


class Pictures(Protocol):
    """Where the pictures of examples are, by their indices: ``pictures`` [n, ...], latents or codes."""

    @property
    def pictures(self) -> Tensor: ...
    def pixels(self, indices: Sequence[int]) -> Tensor:
        """[n,3,S,S] in [-1,1]."""


@dataclass(frozen=True)
class Outcome:
    """``losses`` by name: "flow" or "codes" for pictures to draw, "answer". The hidden states of N image tokens, in
    reading order, are for auxiliary losses (None where the rows have none): ``drawn`` [B,N,h], the normed output at (or
    right before) each cell that is drawn; ``middle`` [B,N,h], the same half-way; ``shown`` [B,N,h], the tokens of a
    picture that is looked at, as they enter the decoder or later."""

    losses: Mapping[str, Tensor]
    drawn: Tensor | None = None
    middle: Tensor | None = None
    shown: Tensor | None = None


HIDDEN = -1
IGNORED = -100


class Part(NamedTuple):
    """Consecutive tokens. ``ids``: anything where an image's embeddings go; ``position``: rotary, of each.

    ``block``: its tokens see all of it, else each sees those before. ``group`` 0: seen by all that follow; above: only
    within the group. ``targets``: what is to be predicted at each token, -100 nothing; None: nothing at all.
    """

    ids: Sequence[int]
    position: Sequence[int]
    block: bool = False
    group: int = 0
    targets: Sequence[int] | None = None


def padding(count: int) -> Part:
    """Tokens that see themselves only and that nobody sees."""
    return Part([0] * count, [0] * count, group=HIDDEN)


def answered(question: Sequence[int], answer: Sequence[int], start: int, group: int) -> Part:
    """A question and its answer, whose tokens are to be predicted; rotary positions from ``start``."""
    ids = [*question, *answer]
    targets = [IGNORED] * (len(question) - 1) + [*answer, IGNORED]
    return Part(ids, range(start, start + len(ids)), group=group, targets=targets)


@dataclass(frozen=True)
class Packed:
    """``ids``, ``position``, ``targets`` [B,S]; ``mask`` bool [B,1,S,S], True = may attend."""

    ids: Tensor
    position: Tensor
    mask: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> Packed:
        return Packed(*(x.to(device) for x in (self.ids, self.position, self.mask, self.targets)))


def pack(rows: Sequence[Sequence[Part]]) -> Packed:
    """Rows of equal length."""
    lengths = {sum(len(part.ids) for part in row) for row in rows}
    if len(lengths) != 1:
        raise ValueError(f"rows must be equally long, not of {sorted(lengths)} tokens: pad them")
    shape = (len(rows), lengths.pop())
    ids, position, group = (np.zeros(shape, int) for _ in range(3))
    targets, sees = np.full(shape, IGNORED), np.tile(np.arange(shape[1]), (shape[0], 1))
    for number, row in enumerate(rows):
        start = 0
        for part in row:
            here = (number, slice(start, start + len(part.ids)))
            ids[here], position[here], group[here] = part.ids, part.position, part.group
            start += len(part.ids)
            if part.block:
                sees[here] = start - 1
            if part.targets is not None:
                targets[here] = part.targets
    order = np.arange(shape[1])
    mask = order <= sees[:, :, None]
    mask &= (group[:, None] == 0) | (group[:, None] == group[:, :, None])
    mask &= group[:, None] != HIDDEN
    mask |= order[:, None] == order
    return Packed(*(torch.from_numpy(x) for x in (ids, position, mask[:, None], targets)))
