"""Where each token of a batch stands, and what it may see."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from flashu.models.layers import Span


@dataclass(frozen=True, eq=False)
class TokenLayout:
    """Positions and visibility of [B, S] tokens, on the CPU: masks are decided without a device sync.

    ``position``: rotary position. ``order``, ``sees``: a query sees the valid keys whose order is at most its ``sees``
    (causal: its own order; in a bidirectional block: the block's last). ``valid``: False for padding that nothing may
    see. ``visual``: image tokens, which pruning may drop. ``spans``: which expert each token uses, the same in every
    row; () = there is only one.
    """

    position: Tensor
    order: Tensor
    sees: Tensor
    valid: Tensor
    visual: Tensor
    spans: tuple[Span, ...] = ()

    @classmethod
    def causal(cls, lengths: Sequence[int], spans: tuple[Span, ...] = ()) -> TokenLayout:
        """Rows of causal text, right-padded to the longest."""
        width = max(lengths)
        at = torch.arange(width).expand(len(lengths), -1)
        return cls(at, at, at, at < torch.tensor(lengths)[:, None], torch.zeros(at.shape, dtype=torch.bool), spans)

    @classmethod
    def of(cls, fields: Iterable[Tensor], spans: tuple[Span, ...] = ()) -> TokenLayout:
        """From the tensors in the order of ``fields``."""
        position, order, sees, valid, visual = fields
        return cls(position, order, sees, valid, visual, spans)

    @property
    def shape(self) -> torch.Size:
        return self.position.shape

    @property
    def fields(self) -> tuple[Tensor, ...]:
        return self.position, self.order, self.sees, self.valid, self.visual

    @cached_property
    def lengths(self) -> list[int]:
        """Valid tokens of each row."""
        return self.valid.sum(1).tolist()

    @cached_property
    def last(self) -> Tensor:
        """Index of the last valid token of each row [B]."""
        return torch.where(self.valid, torch.arange(self.shape[1]), -1).amax(dim=1)

    def block(self, start: int, stop: int, visual: slice | None = None) -> TokenLayout:
        """This layout with tokens start..stop one bidirectional block; ``visual``: those of them that are image tokens
        (default: all)."""
        sees, marked = self.sees.clone(), self.visual.clone()
        sees[:, start:stop] = self.order[:, stop - 1 : stop]
        marked[:, slice(start, stop) if visual is None else visual] = True
        return replace(self, sees=sees, visual=marked)

    def shifted(self, position: int, order: int) -> TokenLayout:
        """The same tokens behind others."""
        return TokenLayout(
            self.position + position, self.order + order, self.sees + order, self.valid, self.visual, self.spans
        )

    def rows(self, index: Tensor) -> TokenLayout:
        return TokenLayout.of((f[index] for f in self.fields), self.spans)

    def part(self, start: int, stop: int) -> TokenLayout:
        """Columns start..stop."""
        inside = (span for span in self.spans if span[1] < stop and span[2] > start)
        spans = tuple((expert, max(a, start) - start, min(b, stop) - start) for expert, a, b in inside)
        return TokenLayout.of((f[:, start:stop] for f in self.fields), spans)

    def gather(self, index: Tensor) -> TokenLayout:
        """The tokens at ``index`` [B, K] of each row; -1 is padding. Only for layouts of a single expert."""
        there, at = index >= 0, index.clamp(min=0)
        position, order, sees, valid, visual = (f.gather(1, at) for f in self.fields)
        return TokenLayout(position, order, sees, valid & there, visual & there)

    def cat(self, other: TokenLayout) -> TokenLayout:
        """These tokens, then others, in each row."""
        width = self.shape[1]
        moved = tuple((e, a + width, b + width) for e, a, b in other.spans)
        spans = (*self.spans, *moved)
        merged: list[Span] = []
        for expert, start, stop in spans:
            if merged and merged[-1][0] == expert and merged[-1][2] == start:
                merged[-1] = (expert, merged[-1][1], stop)
            else:
                merged.append((expert, start, stop))
        pairs = zip(self.fields, other.fields, strict=True)
        return TokenLayout.of((torch.cat(pair, dim=1) for pair in pairs), tuple(merged))

    def padded(self, width: int) -> TokenLayout:
        """Right-padded to ``width`` with tokens that nothing may see."""
        more = width - self.shape[1]
        if not more:
            return self
        if not self.shape[1]:
            nothing = torch.zeros(len(self.valid), width, dtype=torch.bool)
            return TokenLayout(nothing.long(), nothing.long(), nothing.long(), nothing, nothing)
        position, order, sees = (
            torch.cat((f, f[:, -1:].expand(-1, more)), dim=1) for f in (self.position, self.order, self.sees)
        )
        valid, visual = (
            torch.cat((f, torch.zeros(len(f), more, dtype=torch.bool)), dim=1) for f in (self.valid, self.visual)
        )
        last = self.spans[-1] if self.spans else None
        spans = self.spans if last is None else (*self.spans[:-1], (last[0], last[1], width))
        return TokenLayout(position, order, sees, valid, visual, spans)


def stack(layouts: Sequence[TokenLayout]) -> TokenLayout:
    """Rows of several layouts, right-padded to the longest."""
    if len(layouts) == 1:
        return layouts[0]
    width = max(layout.shape[1] for layout in layouts)
    rows = [layout.padded(width) for layout in layouts]
    return TokenLayout.of((torch.cat(f) for f in zip(*(row.fields for row in rows), strict=True)), rows[0].spans)


def visible(query: TokenLayout, keys: TokenLayout) -> Tensor | None:
    """May each query attend each key? bool [B, 1, S_q, S_k] on the CPU; None when every query sees every key."""
    mask = (keys.order[:, None, :] <= query.sees[:, :, None]) & keys.valid[:, None, :]
    return None if bool(mask.all()) else mask[:, None]


@dataclass(frozen=True, eq=False)
class Segment:
    """A piece of a sequence: tokens that are appended or computed together.

    ``content``: what they are, for `UnifiedModel.embed`; the core never looks inside. ``layout`` [1, S]: theirs, with
    positions and order counted from the segment's start. ``advance``: how far the next segment's position lies.
    ``key``: segments of equal keys hold equal tokens; None = equal to no other. ``read``: the tokens whose output is
    wanted of a block, None = all. ``ids``: the text tokens in it, where they may help to guess the next ones.
    """

    content: Any
    layout: TokenLayout
    advance: int
    key: Hashable = None
    read: range | None = None
    ids: tuple[int, ...] = ()

    @property
    def length(self) -> int:
        return self.layout.shape[1]

    @property
    def reads(self) -> range:
        return range(self.length) if self.read is None else self.read
