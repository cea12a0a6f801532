"""The static cache of a decode: room for every token to come, so that a step has fixed shapes and no host work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flashu.models.layers import KeyValue, Rope, Slot
from flashu.models.protocol import UnifiedModel
from flashu.plan import LayerPlan
from flashu.runtime.stretches import Stretch
from flashu.runtime.tokens import Tokens

MULTIPLE = 64
"""Capacities are multiples of it, so that answers of about the same length have the same shapes."""


@dataclass(frozen=True, eq=False)
class View:
    """What does not change while the same tokens look at the same cache: rotary tables and mask, on the device."""

    rope: Rope
    mask: Tensor | None
    head_rope: Rope | None = None


class Space:
    """Room behind tokens that some layers hold, for at least ``more``: ``mask`` [B, 1, 1, C], added to the scores,
    shows them and what is written at ``at`` [1], which moves on."""

    def __init__(self, held: Tokens, more: int, dtype: torch.dtype, device: torch.device) -> None:
        width = held.shape[1]
        capacity = -(-(width + more) // MULTIPLE) * MULTIPLE
        mask = torch.full((len(held.valid), 1, 1, capacity), -torch.inf, dtype=dtype)
        mask[:, 0, 0, :width].masked_fill_(held.valid, 0)
        self.more = capacity - width
        self.mask = mask.to(device)
        self.at = torch.full((1,), width, device=device)
        self.mask.index_fill_(3, self.at, 0)

    def slot(self, kv: KeyValue) -> Slot:
        """Keys and values with room behind them."""
        # Zeros: what nothing sees yet is multiplied by nought all the same.
        k, v = (torch.cat((x, x.new_zeros(*x.shape[:2], self.more, x.shape[3])), dim=2) for x in kv)
        return Slot(k, v, self.at)

    def advance(self) -> None:
        self.at += 1
        self.mask.index_fill_(3, self.at, 0)


class Cache:
    """Keys and values of ``held`` tokens, layer by layer, and room for ``more`` text tokens per row, one at a time.

    It belongs to one run and advances in place, on the device alone: a pass over it is the same program every time,
    which can be recorded. ``walks``: the parts of such a pass under each plan met.
    """

    def __init__(self, model: UnifiedModel, layers: Sequence[KeyValue], held: Sequence[Tokens], more: int) -> None:
        more += 1  # so that it may advance past the last
        self.walks: dict[LayerPlan, Sequence[Stretch]] = {}
        self._first, self._width = held[-1].following(), held[-1].shape[1]
        self._tables = model.rope((self._first.pos + torch.arange(more)).to(model.device))
        # Contiguous, for else their strides would tell how many are to come.
        cos, sin = (table[:, :, :1].clone(memory_format=torch.contiguous_format) for table in self._tables)
        self._rope: Rope = cos, sin
        self._step = torch.zeros(1, dtype=torch.long, device=model.device)
        distinct = {id(tokens): tokens for tokens in held}
        spaces = {key: Space(tokens, more, model.dtype, model.device) for key, tokens in distinct.items()}
        self._spaces = list(spaces.values())
        views = {key: View(self._rope, space.mask) for key, space in spaces.items()}
        self.views = [views[id(tokens)] for tokens in held]
        self.slots = [spaces[id(tokens)].slot(kv) for kv, tokens in zip(layers, held, strict=True)]

    def width(self, taken: int) -> int:
        """Tokens the last layer holds of each row once the cache has ``taken`` in so many."""
        return self._width + taken

    def next(self, taken: int) -> Tokens:
        """The tokens that come next, one per row."""
        return replace(self._first, pos=self._first.pos + taken)

    def at(self, i: int, tokens: Tokens) -> tuple[View, Slot]:
        """What the next tokens see in layer ``i``, and where they go."""
        return self.views[i], self.slots[i]

    def grown(self, *_: object) -> Cache:
        """The next tokens stand in every layer: make ready for those after them."""
        self._step += 1
        for current, table in zip(self._rope, self._tables, strict=True):
            current.copy_(table.index_select(2, self._step))
        for space in self._spaces:
            space.advance()
        return self
