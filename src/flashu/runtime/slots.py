"""Slots: rows of a static cache that decodes join and leave at any token, without touching the other rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import ref

import torch

from flashu.models.protocol import UnifiedModel
from flashu.runtime.cache import KEPT, KVBlock
from flashu.runtime.context import KV, BlockRow, Context
from flashu.runtime.layout import TokenLayout


class Slots(KVBlock):
    """A block of ``rows`` rows with space for ``capacity`` tokens in each, empty at first.

    A forward computes the first rows up to the last selected one, their number rounded up to a power of two; rows
    that are not selected go along, but take nothing in. ``like``: keys and values of which layers hold the same tokens.
    """

    def __init__(self, model: UnifiedModel, like: KV, rows: int, capacity: int) -> None:
        nothing = {id(layout): TokenLayout.causal([1]).part(0, 0) for layout in like.layouts}
        layers = [(k[:1, :, :0], v[:1, :, :0]) for k, v in like.layers]
        empty = KV(layers, [nothing[id(layout)] for layout in like.layouts])
        super().__init__(model, [empty] * rows, [0] * rows, capacity - 1)
        self.capacity, self.places = capacity, rows
        self._members: list[Any] = [lambda: None] * rows
        self._left = [0] * rows
        self._step = torch.zeros(rows, dtype=torch.long, device=model.device)
        self._selected: list[int] = []

    def free(self) -> list[int]:
        """Rows that nobody decodes in, the first ones first."""
        taken = {context.slot.row for context in self.live() if context.slot is not None}
        return [row for row in range(self.places) if row not in taken]

    def fits(self, contexts: Sequence[Context], more: int) -> bool:
        """Whether there are rows and space for these contexts and ``more`` tokens in each."""
        if len(self.free()) < len(contexts):
            return False
        for context in contexts:
            lengths = [layout.shape[1] for layout in context.computed().layouts]
            if max(*lengths, context.position) + more + 1 > self.capacity:
                return False
            if len(set(zip(self.shape.space_of, lengths, strict=True))) != len(self.spaces):
                return False
        return True

    def join(self, contexts: Sequence[Context], more: int) -> None:
        """Copy what contexts hold into free rows, where they decode from now on."""
        for row, context in zip(self.free(), contexts, strict=False):
            kv = context.computed()
            for stored, given in zip(self.storage, kv.layers, strict=True):
                for x, new in zip(stored, given, strict=True):
                    x[row, :, : new.shape[2]] = new[0]
            for space, layout in zip(self.space_of, kv.layouts, strict=True):
                space.length[row] = layout.shape[1]
            self.position[row] = context.position
            self.held[row], self._left[row] = kv.layouts[-1].shape[1], more + 1
            self._members[row] = ref(context)
            context.slot = BlockRow(self, row)
        for space in self.spaces:
            space.refresh()
        self._refresh_rope()

    def select(self, rows: Sequence[int]) -> bool:
        """Always: the other rows keep what they hold."""
        if rows == self._selected:
            return True
        self._selected = list(rows)
        self.rows = min(1 << max(rows).bit_length(), self.places)
        assert isinstance(self._step, torch.Tensor)
        self._step.zero_()
        self._step[self._selected] = 1
        return True

    def past(self, row: int) -> int:
        return self.held[row]

    def took(self, rows: Sequence[int], tokens: int) -> None:
        for row in rows:
            self.held[row] += tokens
            self._left[row] -= tokens

    def _check(self, tokens: int) -> None:
        left = min(self._left[row] for row in self._selected)
        if tokens > left:
            raise IndexError(f"a row with space for {left} more tokens cannot take {tokens}")


class SlotPool:
    """Blocks of slots; a new one is made where none has a free row with enough space. ``rows`` of a block, and the
    least ``capacity`` in tokens of each."""

    def __init__(self, rows: int, capacity: int = 128) -> None:
        self.rows, self.capacity = rows, capacity
        self._blocks: list[Slots] = []

    def join(self, model: UnifiedModel, contexts: Sequence[Context], more: int) -> None:
        """Give contexts a row each in one block, unless they have."""
        if contexts[0].slot is not None:
            return
        block = next((block for block in self._blocks if block.fits(contexts, more)), None)
        if block is None:
            block = self._made(model, contexts, more)
        block.join(contexts, more)

    def _made(self, model: UnifiedModel, contexts: Sequence[Context], more: int) -> Slots:
        held = [context.computed() for context in contexts]
        longest = max(max(kv.layouts[0].shape[1] for kv in held), max(context.position for context in contexts))
        capacity = self.capacity
        while capacity < longest + more + 1:
            capacity *= 2
        finest = max(held, key=lambda kv: len({id(layout) for layout in kv.layouts}))
        block = Slots(model, finest, max(self.rows, len(contexts)), capacity)
        idle = [known for known in self._blocks if not known.live()]
        kept = [known for known in self._blocks if known not in idle[: max(0, len(self._blocks) - KEPT + 1)]]
        self._blocks = [*kept, block]
        return block
