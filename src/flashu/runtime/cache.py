"""The static cache of a decode: space for every token to come, so that a step has fixed shapes and no host work."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, NamedTuple
from weakref import ReferenceType, ref

import torch
from torch import Tensor

from flashu.errors import FlashUError
from flashu.models.layers import AttentionContext, Rope, Slot, Span
from flashu.models.protocol import UnifiedModel
from flashu.runtime.context import KV, BlockRow, Context, stacked
from flashu.runtime.layout import TokenLayout

KEPT = 8
"""Blocks that a pool keeps for later."""
MULTIPLE = 64
"""Capacities are multiples of it, so that answers of about the same length have the same shapes."""


class _Space:
    """Space of some layers that hold the same tokens. Row r has ``length[r]`` of them; new ones come behind."""

    def __init__(self, rows: int, capacity: int, dtype: torch.dtype, device: torch.device) -> None:
        self.length = torch.zeros(rows, dtype=torch.long, device=device)
        self.columns = torch.arange(capacity, device=device)
        self.at = self.length[:, None].clone()
        self.mask = torch.zeros(rows, 1, 1, capacity, dtype=dtype, device=device)

    def window(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Where the next ``tokens`` of each row go [B, S], and what each sees, as an additive mask [B, 1, S, C]."""
        at = self.length[:, None] + torch.arange(tokens, device=self.length.device)
        at = at.clamp(max=len(self.columns) - 1)  # a full row that goes along takes nothing in
        hidden = self.columns > at[..., None]
        mask = torch.zeros(hidden.shape, dtype=self.mask.dtype, device=hidden.device).masked_fill_(hidden, -torch.inf)
        return at, mask[:, None]

    def refresh(self) -> None:
        """Bring ``at`` and ``mask``, those of the next single token, up to date, in place."""
        at, mask = self.window(1)
        self.at.copy_(at)
        self.mask.copy_(mask)

    def entered(self, ran: Tensor) -> tuple[Tensor, Tensor]:
        """As `window` for the next tokens, of which only those that ``ran`` [B, S] stay here: the others go to the last
        column, which no row reaches."""
        count = self.length[: len(ran), None] + ran.long().cumsum(1)
        at = torch.where(ran, count - 1, self.columns[-1])
        hidden = (self.columns >= count[..., None]) & (self.columns != at[..., None])
        mask = torch.zeros(hidden.shape, dtype=self.mask.dtype, device=hidden.device).masked_fill_(hidden, -torch.inf)
        return at, mask[:, None]

    def advance(self, step: int | Tensor = 1) -> None:
        """One token more in every row, or ``step`` [rows] of 0 or 1."""
        self.length += step
        self.at += 1 if isinstance(step, int) else step[:, None]
        self.mask.masked_fill_(self.columns == self.at[..., None, None], 0)


class Reserved(NamedTuple):
    """How far a block was filled."""

    taken: list[int]
    position: Tensor
    lengths: list[Tensor]


class BlockShape(NamedTuple):
    """The shapes of a block: rows, the capacity of each space, which space each layer is in, positions in its rotary
    tables. Blocks of one model and shape are interchangeable."""

    rows: int
    capacities: tuple[int, ...]
    space_of: tuple[int, ...]
    reach: int

    @classmethod
    def of(cls, whole: KV, positions: Sequence[int], more: int) -> BlockShape:
        """What rows need that hold these tokens and take in ``more``, in multiples of `MULTIPLE`."""
        distinct = {id(layout): layout for layout in whole.layouts}
        place = {key: n for n, key in enumerate(distinct)}
        capacities = tuple(_rounded(max(layout.lengths) + more + 1) for layout in distinct.values())
        space_of = tuple(place[id(layout)] for layout in whole.layouts)
        return cls(len(positions), capacities, space_of, _rounded(max(positions) + more + 1))


def _rounded(count: int) -> int:
    return -(-count // MULTIPLE) * MULTIPLE


class KVBlock:
    """Keys and values of rows that decode together, and space for ``more`` tokens in each. New ones are written behind
    each row's own length, over its padding.

    The state of a single-token step changes in place, on the device alone, so that the step can be captured; `fill`
    makes the block another batch's.
    """

    def __init__(self, model: UnifiedModel, rows: Sequence[KV], positions: Sequence[int], more: int) -> None:
        whole = stacked(rows)
        self.rows, self.shape = len(rows), BlockShape.of(whole, positions, more)
        self.draft: Any = None
        """What a drafter keeps of these rows."""
        self.accepted = [0] * self.rows
        """Of the tokens last verified, how many each row keeps."""
        self._before: Reserved | None = None
        self._members: list[ReferenceType[Context]] = []
        self._single: dict[tuple[tuple[Span, ...], int], list[AttentionContext]] = {}
        self._step: int | Tensor = 1
        """How far a token moves each row."""
        self.spaces = [_Space(self.rows, c, model.dtype, model.device) for c in self.shape.capacities]
        self.space_of = [self.spaces[n] for n in self.shape.space_of]
        self._entered: dict[int, Tensor] = {}
        # Zeros: what nothing sees yet is multiplied by nought all the same.
        self.storage = [
            tuple(x.new_zeros(*x.shape[:2], self.shape.capacities[n], x.shape[3]) for x in kv)
            for kv, n in zip(whole.layers, self.shape.space_of, strict=True)
        ]
        self.position = torch.zeros(self.rows, dtype=torch.long, device=model.device)
        # Cosines and sines in one table, so that a step looks up both at once.
        self._table = torch.cat(model.rope(torch.arange(self.shape.reach, device=model.device)[None]), dim=-1)[0, 0]
        self._turned = self._table.index_select(0, self.position)
        self._rope: Rope = tuple(x[:, None, None] for x in self._turned.chunk(2, dim=-1))  # type: ignore[assignment]
        self._fill(whole, positions, more)

    def fill(self, rows: Sequence[KV], positions: Sequence[int], more: int) -> None:
        """Take in the tokens of other rows, of a shape that fits."""
        self._fill(stacked(rows), positions, more)

    def _fill(self, whole: KV, positions: Sequence[int], more: int) -> None:
        self.bypassed = False
        """Whether tokens have bypassed a layer."""
        self.more = more + 1  # so that it may advance past the last
        self.taken = [0] * self.rows
        """Tokens of each row written since."""
        self.draft, self._before = None, None
        self.held = whole.layouts[-1].lengths
        """Tokens of each row in the last layer before that."""
        for stored, given in zip(self.storage, whole.layers, strict=True):
            for x, new in zip(stored, given, strict=True):
                x[:, :, : new.shape[2]] = new
        distinct = {id(layout): layout.lengths for layout in whole.layouts}
        for space, lengths in zip(self.spaces, distinct.values(), strict=True):
            space.length.copy_(torch.tensor(lengths))
            space.refresh()
        self.position.copy_(torch.tensor(positions))
        self._refresh_rope()

    def hold(self, contexts: Sequence[Context]) -> None:
        """These contexts decode here, one in each row."""
        self._members = [ref(context) for context in contexts]
        for row, context in enumerate(contexts):
            context.slot = BlockRow(self, row)

    def live(self) -> list[Context]:
        """The contexts that still decode here."""
        there = (member() for member in self._members)
        return [context for context in there if context is not None and context.slot and context.slot.block is self]

    def past(self, row: int) -> int:
        """Tokens of a row in the last layer."""
        return self.held[row] + self.taken[row]

    def took(self, rows: Sequence[int], tokens: int) -> None:
        """Note that ``rows``, all that decode here, took in ``tokens`` more."""
        self.taken = [taken + tokens for taken in self.taken]

    def select(self, rows: Sequence[int]) -> bool:
        """Whether the next tokens can be those of ``rows`` alone: whether only they are still in use."""
        return {context.slot.row for context in self.live() if context.slot is not None} == set(rows)

    def row(self, index: int) -> KV:
        """The keys and values of one row. Others may not yet have said what they accept."""
        layouts = {id(space): TokenLayout.causal([n]) for space, n in zip(self.spaces, self._held(index), strict=True)}
        own = [layouts[id(space)] for space in self.space_of]
        pick = slice(index, index + 1)
        layers = [
            (k[pick, :, : layout.shape[1]], v[pick, :, : layout.shape[1]])
            for (k, v), layout in zip(self.storage, own, strict=True)
        ]
        return KV(layers, own)

    def contexts(self, tokens: int = 1, spans: tuple[Span, ...] = ()) -> list[AttentionContext]:
        """What the next ``tokens`` of each row attend to, by layer, and where their keys and values go; ``spans``: the
        expert of each."""
        self._check(tokens)
        if tokens == 1 and (spans, self.rows) in self._single:
            return self._single[spans, self.rows]
        rope = self._rope
        if tokens > 1:
            ahead = self.position[:, None] + torch.arange(tokens, device=self.position.device)
            ahead = ahead.clamp(max=len(self._table) - 1)
            rope = tuple(self._table[ahead][:, None].chunk(2, dim=-1))  # type: ignore[assignment]
        windows = {id(s): (s.at, s.mask) if tokens == 1 else s.window(tokens) for s in self.spaces}
        found, n = [], self.rows
        rope = rope[0][:n], rope[1][:n]
        for (k, v), space in zip(self.storage, self.space_of, strict=True):
            at, mask = windows[id(space)]
            found.append(AttentionContext(rope, mask[:n], Slot(k[:n], v[:n], at[:n]), spans))
        if tokens == 1:
            self._single[spans, n] = found  # their tensors change in place
        return found

    def entered(self, layer: int, context: AttentionContext, ran: Tensor) -> AttentionContext:
        """What the next tokens [B, S] attend to in a layer that only those that ``ran`` stay in."""
        space = self.space_of[layer]
        if sum(other is space for other in self.space_of) > 1:
            raise ValueError(f"layer {layer} shares its tokens with others: it was not bypassed so far")
        at, mask = space.entered(ran)
        self._entered[id(space)] = ran.sum(1)
        assert isinstance(context.past, Slot)
        return context._replace(mask=mask, past=context.past._replace(at=at))

    def advance(self, tokens: int = 1) -> None:
        """The next ``tokens`` of every row now stand in every layer: on the device alone; `took` notes it here."""
        self.position += tokens * self._step
        for space in self.spaces:
            if (entered := self._entered.pop(id(space), None)) is not None:
                n = len(entered)
                space.length[:n] += entered * (self._step if isinstance(self._step, int) else self._step[:n])
                self.bypassed = True
            elif tokens == 1:
                space.advance(self._step)
            else:
                space.length += tokens * self._step
                space.refresh()
        self._refresh_rope()

    def _check(self, tokens: int) -> None:
        if max(self.taken) + tokens > self.more:
            raise IndexError(f"a cache with space for {self.more} tokens cannot take {tokens} after {max(self.taken)}")

    def reserve(self, tokens: int) -> Reserved:
        """The state before ``tokens`` more are written, for `truncate`."""
        self._check(tokens)
        return Reserved(list(self.taken), self.position.clone(), [space.length.clone() for space in self.spaces])

    def truncate(self, before: Reserved, accepted: Sequence[int]) -> None:
        """Take back all but the first ``accepted`` tokens of each row of those that were written since `reserve`."""
        if self.bypassed:
            raise FlashUError("tokens that bypass layers cannot be taken back: no drafts for a routed model")
        kept = torch.tensor(accepted, device=self.position.device)
        self.taken = [taken + more for taken, more in zip(before.taken, accepted, strict=True)]
        self.position.copy_(before.position + kept)
        for space, length in zip(self.spaces, before.lengths, strict=True):
            space.length.copy_(length + kept)
            space.refresh()
        self._refresh_rope()

    def verify(self, before: Reserved) -> None:
        """Of the tokens written since `reserve`, each row keeps what `accept` says, else none; `settle` carries it
        out."""
        self._before, self.accepted = before, [0] * self.rows

    def accept(self, row: int, tokens: int) -> None:
        """Row ``row`` keeps so many of the tokens just verified."""
        self.accepted[row] = tokens

    def settle(self) -> None:
        """Take back what was not accepted of the tokens just verified."""
        if self._before is not None:
            before, self._before = self._before, None
            self.truncate(before, self.accepted)

    def _held(self, row: int) -> list[int]:
        """Tokens of a row in each space, less those that it did not accept."""
        if self._before is None:
            return [int(space.length[row]) for space in self.spaces]
        return [int(length[row]) + self.accepted[row] for length in self._before.lengths]

    def _refresh_rope(self) -> None:
        torch.index_select(self._table, 0, self.position.clamp(max=len(self._table) - 1), out=self._turned)


class KVPool:
    """Blocks that are used again, so that what was captured over one serves later requests, too."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks: list[KVBlock] = []

    def take(self, model: UnifiedModel, contexts: Sequence[Context], more: int) -> KVBlock:
        """A block in which these contexts, and no others, decode from now on."""
        rows, positions = [context.computed() for context in contexts], [context.position for context in contexts]
        shape = BlockShape.of(stacked(rows), positions, more)
        with self._lock:
            free = (block for block in self._blocks if block.shape == shape and not block.live())
            block = next(free, None)
            if block is None:
                block = KVBlock(model, rows, positions, more)
                self._blocks = [*self._blocks, block][-KEPT:]
            else:
                block.fill(rows, positions, more)
            block.hold(contexts)
        return block
