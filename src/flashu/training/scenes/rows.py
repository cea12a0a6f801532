"""Training rows: parts of tokens in a fixed order, who sees whom, what is to be predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

HIDDEN = -1
IGNORED = -100


class Part(NamedTuple):
    """Consecutive tokens. ``ids``: anything where an image's embeddings go; ``position``: rotary, of each.

    ``block``: its tokens see all of it, else each sees those before. ``group`` 0: seen by all that follow; above: within
    the group only. ``targets``: what is to be predicted at each token, -100 nothing; None: nothing at all.
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
