"""Where each token of a batch stands and what it may see."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

TEXT = 0


@dataclass(frozen=True, eq=False)
class Tokens:
    """Positions and visibility of [B, S] tokens. All three live on the CPU: masks are decided without a device sync.

    ``pos``: rotary position, also the causal order. ``block``: 0 = causal, n > 0 = inside the n-th bidirectional
    block. ``valid``: False for padding that nothing may see. ``visual``: image tokens, which pruning may drop.
    """

    pos: Tensor
    block: Tensor
    valid: Tensor
    visual: Tensor

    @classmethod
    def text(cls, lengths: list[int], width: int | None = None) -> Tokens:
        """Rows of causal tokens, right-padded to ``width``."""
        width = max(lengths) if width is None else width
        pos = torch.arange(width).expand(len(lengths), -1)
        no = torch.zeros(len(lengths), width, dtype=torch.bool)
        return cls(pos, no.long(), pos < torch.tensor(lengths)[:, None], no)

    @property
    def shape(self) -> torch.Size:
        return self.pos.shape

    @cached_property
    def last(self) -> Tensor:
        """Index of the last valid token of each row [B]."""
        return torch.where(self.valid, torch.arange(self.shape[1]), -1).amax(dim=1)

    def with_block(self, row: int, start: int, stop: int, block: int) -> None:
        """Mark [start, stop) of a row as one bidirectional block (in place; for builders only)."""
        self.block[row, start:stop] = block

    def rows(self, index: Tensor) -> Tokens:
        return Tokens(self.pos[index], self.block[index], self.valid[index], self.visual[index])

    def part(self, start: int, stop: int) -> Tokens:
        """Columns [start, stop)."""
        return Tokens(*(f[:, start:stop] for f in (self.pos, self.block, self.valid, self.visual)))

    def gather(self, index_BK: Tensor) -> Tokens:
        """The tokens at ``index`` [B, K] of each row; -1 is padding."""
        there, at = index_BK >= 0, index_BK.clamp(min=0)
        pos, block, valid, visual = (f.gather(1, at) for f in (self.pos, self.block, self.valid, self.visual))
        return Tokens(pos, block, valid & there, visual & there)

    def cat(self, other: Tokens) -> Tokens:
        pairs = zip(
            (self.pos, self.block, self.valid, self.visual),
            (other.pos, other.block, other.valid, other.visual),
            strict=True,
        )
        return Tokens(*(torch.cat(pair, dim=1) for pair in pairs))

    def following(self) -> Tokens:
        """One text token after the last valid one of each row."""
        pos = self.pos.gather(1, self.last[:, None]) + 1
        no = torch.zeros_like(pos, dtype=torch.bool)
        return Tokens(pos, torch.zeros_like(pos), ~no, no)


def visible(query: Tokens, keys: Tokens) -> Tensor | None:
    """May each query attend each key? bool [B, 1, S_q, S_k] on the CPU; None when every query sees every key.

    A query sees a valid key that is not later, or that lies in the same block.
    """
    earlier = keys.pos[:, None, :] <= query.pos[:, :, None]
    together = (keys.block[:, None, :] == query.block[:, :, None]) & (query.block[:, :, None] != TEXT)
    mask = (earlier | together) & keys.valid[:, None, :]
    return None if bool(mask.all()) else mask[:, None]
