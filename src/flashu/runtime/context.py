"""A context: what stands before the next tokens of one row, and the keys and values computed of it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch

from flashu.models.layers import Front, KeyValue
from flashu.plan import LayerPlan
from flashu.runtime.layout import Segment, TokenLayout, stack

if TYPE_CHECKING:
    from flashu.runtime.cache import KVBlock


@dataclass(frozen=True, eq=False)
class KV:
    """Keys and values of some rows [B, H, T, d], layer by layer, and which tokens each layer's hold; ``head``: those of
    the drawing head's blocks, which hold every token. ``draft``: what a drafter reads, the embedded tokens and their
    features [B, 1, T, D], of the tokens that the last layer holds. It never changes."""

    layers: Sequence[KeyValue | Front]
    layouts: Sequence[TokenLayout]
    head: Sequence[KeyValue | Front] = ()
    draft: Sequence[KeyValue] = ()

    def row(self, index: int) -> KV:
        """One row, without its padding."""
        rows = {id(layout): _Columns.of(layout, index) for layout in self.layouts}

        def cut(kvs: Sequence[KeyValue], layouts: Sequence[TokenLayout]) -> list[KeyValue]:
            columns = [rows[id(layout)] for layout in layouts]
            return [(c.of_row(k, index), c.of_row(v, index)) for (k, v), c in zip(kvs, columns, strict=True)]

        # The head sees what the first layer sees: tokens are dropped on the way through the decoder only.
        head = cut(self.head, [self.layouts[0]] * len(self.head))
        draft = cut(self.draft, [self.layouts[-1]] * len(self.draft))
        return KV(cut(self.layers, self.layouts), [rows[id(layout)].layout for layout in self.layouts], head, draft)


def behind_space(kv: KV, tokens: int) -> KV:
    """The same keys and values, copied once, behind space for a block of ``tokens``."""

    def moved(x: torch.Tensor) -> torch.Tensor:
        # Zeros, as what no forward has written yet may be looked at under a mask.
        return torch.cat((x.new_zeros(*x.shape[:2], tokens, x.shape[3]), x), dim=2)

    layers, head = ([Front(moved(k), moved(v)) for k, v in kvs] for kvs in (kv.layers, kv.head))
    return KV(layers, kv.layouts, head)


@dataclass(frozen=True, eq=False)
class _Columns:
    """The valid tokens of one row: their layout, and which columns they are."""

    layout: TokenLayout
    index: slice | torch.Tensor

    @classmethod
    def of(cls, layout: TokenLayout, row: int) -> _Columns:
        index = layout.valid[row].nonzero()[:, 0]
        whole = layout.rows(torch.tensor([row]))
        if len(index) == 0 or int(index[-1]) + 1 == len(index):
            return cls(whole.part(0, len(index)), slice(0, len(index)))
        return cls(TokenLayout.of((f[:, index] for f in whole.fields), whole.spans), index)

    def of_row(self, x: torch.Tensor, row: int) -> torch.Tensor:
        """x [B, H, T, d] -> [1, H, T', d]."""
        return x[row : row + 1, :, self.index if isinstance(self.index, slice) else self.index.to(x.device)]


def stacked(kvs: Sequence[KV]) -> KV:
    """The rows of several, right-padded to the longest. Layers whose rows hold the same tokens share a layout."""
    if len(kvs) == 1:
        return kvs[0]
    layouts: dict[tuple[int, ...], TokenLayout] = {}
    held = []
    for group in zip(*(kv.layouts for kv in kvs), strict=True):
        key = tuple(map(id, group))
        if key not in layouts:
            layouts[key] = stack(group)
        held.append(layouts[key])
    layers = [_stack(group) for group in zip(*(kv.layers for kv in kvs), strict=True)]
    head = [_stack(group) for group in zip(*(kv.head for kv in kvs), strict=True)]
    # Rows computed without a drafter have nothing for one.
    draft = [_stack(group) for group in zip(*(kv.draft for kv in kvs), strict=False)]
    return KV(layers, held, head, draft)


def _stack(rows: Sequence[KeyValue]) -> KeyValue:
    width = max(k.shape[2] for k, _ in rows)

    def padded(x: torch.Tensor) -> torch.Tensor:
        # Zeros, as a masked value is multiplied by nought all the same.
        more = width - x.shape[2]
        return x if not more else torch.cat((x, x.new_zeros(*x.shape[:2], more, x.shape[3])), dim=2)

    return torch.cat([padded(k) for k, _ in rows]), torch.cat([padded(v) for _, v in rows])


class BlockRow(NamedTuple):
    """Where a context decodes: its row of a block."""

    block: KVBlock
    row: int


class Context:
    """One row's segments so far, and the keys and values computed of them, by the layer plan they were computed under
    (None: under whatever each forward's plan was, as an answer's are).

    Appending computes nothing: the first forward that reads the context computes what is missing.
    """

    def __init__(self) -> None:
        self.segments: list[Segment] = []
        self.position = 0
        self.length = 0
        """Tokens appended: the order of the next one."""
        self.slot: BlockRow | None = None
        self._computed: dict[LayerPlan | None, tuple[int, KV]] = {}

    @classmethod
    def beginning(cls, other: Context, segments: int, under: LayerPlan | None) -> Context:
        """A context of the first segments of another, which holds what that one has computed under a layer plan."""
        begun = cls()
        if under in other._computed:
            begun._computed[under] = other._computed[under]
        begun.segments = other.segments[:segments]
        begun.length = sum(segment.length for segment in begun.segments)
        begun.position = sum(segment.advance for segment in begun.segments)
        return begun

    @classmethod
    def holding(cls, kv: KV, position: int, key: Hashable) -> Context:
        """A context whose keys and values come from elsewhere; the next token stands at ``position``. It can be read
        under the layer plan None alone."""
        held = cls()
        layout = kv.layouts[0]
        held.segments = [Segment(None, layout, position, key)]
        held.position, held.length = position, layout.shape[1]
        held._computed[None] = (1, kv)
        return held

    @property
    def key(self) -> Hashable:
        """Contexts of equal keys hold equal tokens; None: equal to no other."""
        keys = tuple(segment.key for segment in self.segments)
        return None if None in keys else keys

    def append(self, segment: Segment) -> None:
        self.segments.append(replace(segment, layout=self.placed(segment)))
        self.position += segment.advance
        self.length += segment.length

    @property
    def ids(self) -> list[int]:
        """The text tokens of its segments."""
        return [token for segment in self.segments for token in segment.ids]

    def accept(self, tokens: int) -> None:
        """Keep the first ``tokens`` of those just verified behind this context."""
        assert self.slot is not None
        self.slot.block.accept(self.slot.row, tokens)
        self.position += tokens
        self.length += tokens

    def fork(self) -> Context:
        """A context that begins with this one; what is computed of it is shared."""
        other = Context()
        other.segments, other.position, other.length = list(self.segments), self.position, self.length
        other._computed = dict(self._computed)
        if self.slot is not None:
            kv = self.computed()  # a view of a block that others will use
            layers = [(k.clone(), v.clone()) for k, v in kv.layers]
            other._computed[None] = (len(self.segments), KV(layers, kv.layouts))
        return other

    def kv(self, under: LayerPlan | None) -> KV | None:
        """What has been computed under a layer plan; None: nothing."""
        if under is None and self.slot is not None:
            return self.slot.block.row(self.slot.row)
        return self._computed.get(under, (0, None))[1]

    def pending(self, under: LayerPlan | None) -> list[Segment]:
        """The segments not yet computed."""
        return self.segments[self._computed.get(under, (0, None))[0] :]

    def held(self, under: LayerPlan | None) -> int:
        """Tokens that are computed, as the first layer holds them."""
        kv = self.kv(under)
        return 0 if kv is None else kv.layouts[0].shape[1]

    def computed(self) -> KV:
        """The keys and values of all tokens so far, those decoded included."""
        kv = self.kv(None)
        if kv is None:
            raise ValueError("nothing of this context has been computed")
        return kv

    def close(self) -> None:
        """Give up the row of a decode: its memory is another's to use."""
        self.slot = None

    def settle(self, segment: Segment | None, extra: int) -> None:
        """Stop decoding: what was decoded is ``segment`` (None: nothing), and ``extra`` tokens after it, which are
        dropped. The keys and values are copied out of the block, once."""
        if self.slot is None:
            return
        kv = self.slot.block.row(self.slot.row)
        kept: dict[int, TokenLayout] = {}
        for layout in kv.layouts:
            kept.setdefault(id(layout), layout.part(0, layout.shape[1] - extra))
        own = [kept[id(layout)] for layout in kv.layouts]
        lengths = [layout.shape[1] for layout in own]
        layers = [(k[:, :, :n].clone(), v[:, :, :n].clone()) for (k, v), n in zip(kv.layers, lengths, strict=True)]
        self.slot = None
        self.position -= extra
        self.length -= extra
        if segment is not None:
            start = self.position - segment.advance, self.length - segment.length
            self.segments.append(replace(segment, layout=segment.layout.shifted(*start)))
        self._computed[None] = (len(self.segments), KV(layers, own))

    def keep(self, under: LayerPlan | None, kv: KV, segments: int) -> None:
        """Note that the first ``segments`` are computed."""
        self._computed[under] = (segments, kv)

    def placed(self, segment: Segment) -> TokenLayout:
        """Where the tokens of a segment stand if they come next."""
        return segment.layout.shifted(self.position, self.length)
