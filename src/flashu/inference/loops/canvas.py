"""The rows of a text-to-image batch: conditional rows, then (under guidance) as many unconditional ones.

Packed: a row is its prompt, computed once as a prefix, and the image block, computed every forward.
Padded: the original's rows, computed whole every forward; the `reference` recipe needs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from flashu.runtime.tokens import Tokens

IMAGE_BLOCK = 1
Earlier: TypeAlias = Sequence[tuple[int, Tensor]]
"""Images that stand in a row before the one to draw: where each begins, and its time and image tokens [N + 1, h]."""


@dataclass(frozen=True, eq=False)
class Canvas:
    """``tokens`` [R, S] are computed every forward; in row r the image block (time token, then N image tokens)
    is at ``block[r]`` [N + 1]. ``ids`` [R, S] their text, or None when they are the block alone. ``prefix``:
    the distinct prompts' tokens [U, P] and ``prefix_ids``; row r continues prompt ``prompt_of[r]``. ``shown``:
    images in the prompts, as (prompt, position, tokens).
    """

    tokens: Tokens
    block: Tensor
    ids: Tensor | None
    prefix: Tokens | None
    prefix_ids: Tensor | None
    prompt_of: Tensor | None
    shown: tuple[tuple[int, int, Tensor], ...] = ()

    @property
    def is_image(self) -> Tensor | None:
        """bool [R, S]: positions of the image block; None when all are."""
        if self.ids is None:
            return None
        return torch.zeros(self.tokens.shape, dtype=torch.bool).scatter_(1, self.block, True)

    def branch(self, rows: int) -> Canvas:
        """The first ``rows`` rows."""
        index = torch.arange(rows)
        return replace(
            self,
            tokens=self.tokens.rows(index),
            block=self.block[index],
            ids=None if self.ids is None else self.ids[index],
            prompt_of=None if self.prompt_of is None else self.prompt_of[index],
        )


def packed(rows: list[list[int]], image_tokens: int, earlier: Sequence[Earlier] | None = None) -> Canvas:
    """Prompt rows [bos, ..., boi], each followed by its image block; equal prompts share one prefix.

    ``earlier``: the images in each row's prompt, where its ids are placeholders.
    """
    images = [()] * len(rows) if earlier is None else earlier
    keys = [(tuple(row), tuple((at, id(block)) for at, block in seen)) for row, seen in zip(rows, images, strict=True)]
    distinct = dict(zip(keys, images, strict=True))
    order = {key: n for n, key in enumerate(distinct)}
    lengths = [len(row) for row, _ in distinct]
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    prefix = Tokens.text(lengths)
    for n, ((row, _), seen) in enumerate(distinct.items()):
        ids[n, : len(row)] = torch.tensor(row)
        for number, (at, block) in enumerate(seen, start=1):
            prefix.with_block(n, at, at + len(block), IMAGE_BLOCK + number)
    size = (len(rows), image_tokens + 1)
    start = torch.tensor([len(row) for row in rows])[:, None]
    tokens = Tokens(
        pos=start + torch.arange(image_tokens + 1),
        block=torch.full(size, IMAGE_BLOCK),
        valid=torch.ones(size, dtype=torch.bool),
        visual=(torch.arange(image_tokens + 1) > 0).expand(size),
    )
    prompt_of = torch.tensor([order[key] for key in keys])
    shown = tuple((n, at, block) for n, seen in enumerate(distinct.values()) for at, block in seen)
    return Canvas(tokens, torch.arange(image_tokens + 1).expand(size), None, prefix, ids, prompt_of, shown)


def padded(rows: list[list[int]], starts: list[int], image_tokens: int) -> Canvas:
    """Whole rows of equal length with the image block at ``starts``; padding is ordinary text, as in the original."""
    ids = torch.tensor(rows)
    tokens = Tokens.text([ids.shape[1]] * len(rows))
    block = torch.tensor(starts)[:, None] + torch.arange(image_tokens + 1)
    in_block = torch.zeros(ids.shape, dtype=torch.long).scatter_(1, block, IMAGE_BLOCK)
    visual = torch.zeros(ids.shape, dtype=torch.bool).scatter_(1, block[:, 1:], True)
    return Canvas(Tokens(tokens.pos, in_block, tokens.valid, visual), block, ids, None, None, None)
