"""Speculative decoding: what proposes tokens, and how many. One forward verifies them; the result is the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from flashu.errors import FlashUError
from flashu.models.draft import DraftNetwork
from flashu.models.layers import AttentionContext
from flashu.models.protocol import UnifiedModel
from flashu.models.registry import ASSETS
from flashu.models.speculators import kind_of, load_network, load_ngrams, load_skips
from flashu.plan import LayerPlan
from flashu.runtime.cache import KVBlock
from flashu.runtime.context import KV, Context
from flashu.runtime.drafting import DraftBatch, Drafter
from flashu.runtime.layout import TokenLayout, visible

MOST = 8
"""Tokens drafted at once, at most, unless said otherwise."""
WIDTH = 0.02
"""Time that one token more adds to a forward of a few, as a share of it; the weights are read once for all."""
CERTAIN, DECAY = 0.7, 0.95
"""Of the running acceptance rate: what it begins with, and what is left of an observation after the next."""
AGAIN = 8
"""Forwards without a draft before one is tried again."""


@dataclass(frozen=True, eq=False)
class Speculation:
    """A drafter and how it is used. ``most``: tokens drafted at once; ``adapt``: fewer where fewer are accepted."""

    drafter: Drafter
    most: int = MOST
    adapt: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.most, int) or not 1 <= self.most <= 64:
            raise FlashUError(f"between 1 and 64 tokens can be drafted at once, not {self.most!r}")


class DraftLength:
    """How many tokens of one row are drafted next.

    The number that makes the most tokens per time of the acceptance rate seen: with rate a and cost c of a drafted
    token, (1 + a + ... + a^k) / (1 + c k).
    """

    def __init__(self, speculation: Speculation) -> None:
        self._most, self._adapt = speculation.most, speculation.adapt
        self._cost = speculation.drafter.cost + WIDTH
        self._accepted, self._tried = CERTAIN * 4, 4.0
        self._idle = 0

    def next(self) -> int:
        if not self._adapt:
            return self._most
        rate = self._accepted / self._tried
        best = max(range(self._most + 1), key=lambda k: sum(rate**n for n in range(k + 1)) / (1 + self._cost * k))
        self._idle = 0 if best else self._idle + 1
        if self._idle == AGAIN:
            self._idle = 0
            return 1
        return best

    def learn(self, drafted: int, accepted: int) -> None:
        """Of so many drafted tokens, the first so many were accepted; what comes after a rejection was not tried."""
        for right in range(min(accepted + 1, drafted)):
            self._accepted = DECAY * self._accepted + (right < accepted)
            self._tried = DECAY * self._tried + 1


SHIPPED = ASSETS / "drafts"
"""Drafts of embedded models, by the model's name."""
DraftSource: TypeAlias = "Speculation | Drafter | str | Path | None"


def speculation_of(source: DraftSource, model: UnifiedModel) -> Speculation | None:
    """How a model's text is drafted: a `Speculation` or a drafter; "lookup" (what followed the last tokens before);
    "self:4-7" (the model without layers 4 to 7; numbers and ranges, separated by commas); "shipped" (the draft that is
    in the package for an embedded model); or the folder of a draft. `FlashUError` for anything else, and for a draft of
    another model."""
    if source is None or isinstance(source, Speculation):
        return source
    if not isinstance(source, str | Path):
        return Speculation(source)
    name = str(source)
    if name == "lookup":
        return Speculation(LookupDrafter())
    if name.startswith("self:"):
        return Speculation(SelfDrafter.skipping(model, _numbers(name.removeprefix("self:"))))
    if name == "shipped":
        source = SHIPPED / model.name
        if not model.name or not source.is_dir():
            known = ", ".join(sorted(folder.name for folder in SHIPPED.iterdir()))
            raise FlashUError(
                f"no draft is in the package for {model.name or 'this model'}, only for {known}: give a folder, "
                "or train one with `flashu train draft`"
            )
    return Speculation(load_drafter(source, model))


def _numbers(text: str) -> list[int]:
    """Of "1,4-6": 1, 4, 5, 6."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not first.isdigit() or (last and not last.isdigit()):
            raise FlashUError(f"layers are numbers and ranges such as 3,5-8, not {text!r}")
        found += range(int(first), int(last or first) + 1)
    return found


# -- drafters without weights --------------------------------------------------------------------------------------
class _Stateless:
    """Nothing is read of the model, nothing kept of a row."""

    collect: ClassVar[tuple[int, ...]] = ()

    def features(self, collected: Sequence[Tensor]) -> Tensor:
        raise TypeError("this drafter reads no features")

    def begin(self, contexts: Sequence[Context], space: int) -> Any:
        return None

    def observe(self, block: KVBlock, ids: Tensor, features: Tensor | None) -> None:
        pass


@dataclass(frozen=True, eq=False)
class SelfDrafter(_Stateless):
    """The model itself, under a shorter layer plan. What it writes of drafted tokens, the verification writes again."""

    layers: LayerPlan
    cost: float

    @classmethod
    def skipping(cls, model: UnifiedModel, skip: Sequence[int]) -> SelfDrafter:
        """The model without some of its layers; `FlashUError` for layers that it has not."""
        count = model.spec.layers
        if not skip or not all(0 <= i < count for i in skip) or len(set(skip)) == count:
            raise FlashUError(f"a draft leaves out some, not all, of the layers 0 to {count - 1}: got {sorted(skip)}")
        return cls(LayerPlan(frozenset(skip)), 1 - len(set(skip)) / count)

    def propose(self, batch: DraftBatch, length: int) -> Tensor:
        before, tokens = batch.block.reserve(length), [batch.pending]
        for _ in range(length):
            tokens.append(batch.choose(batch.step(tokens[-1], self.layers)))
        batch.block.truncate(before, [0] * batch.block.rows)
        return torch.stack(tokens[1:], dim=1)


@dataclass(frozen=True, eq=False)
class LookupDrafter(_Stateless):
    """What followed the row's last tokens before: in the row itself (prompt lookup), else in other answers.

    ``longest``: tokens that are compared, at most. ``table``: the commonest token after some tokens, from answers given
    before (`ngrams`).
    """

    layers: ClassVar[None] = None
    longest: int = 4
    table: Mapping[tuple[int, ...], int] = field(default_factory=dict)
    cost: float = 0.0

    def propose(self, batch: DraftBatch, length: int) -> Tensor:
        rows = []
        for known in batch.known:
            row = list(known)
            for _ in range(length):
                row.append(self._after(row))
            rows.append(row[len(known) :])
        return torch.tensor(rows, device=batch.pending.device).view(len(rows), length)

    def _after(self, row: list[int]) -> int:
        for size in range(min(self.longest, len(row) - 1), 0, -1):
            last = row[-size:]
            found = self.table.get(tuple(last))
            if found is not None:
                return found
            for at in range(len(row) - size - 1, -1, -1):
                if row[at : at + size] == last:
                    return row[at + size]
        return row[-1] if row else 0


def ngrams(answers: Sequence[Sequence[int]], longest: int = 4) -> dict[tuple[int, ...], int]:
    """The commonest token after each run of up to ``longest`` tokens in some answers."""
    counts: dict[tuple[int, ...], Counter[int]] = {}
    for answer in answers:
        for n in range(1, len(answer)):
            for size in range(1, min(longest, n) + 1):
                counts.setdefault(tuple(answer[n - size : n]), Counter())[answer[n]] += 1
    return {key: count.most_common(1)[0][0] for key, count in counts.items()}


# -- drafters with weights -----------------------------------------------------------------------------------------
@dataclass(eq=False)
class _Row:
    """A row before a block holds it: tokens that have not gone through the network (``ids`` [n], ``features`` [n, D]);
    before them, embedded tokens and features [T, D] that must, or its ``kv`` of them."""

    ids: Tensor
    features: Tensor
    inputs: Tensor = field(default_factory=lambda: torch.empty(0))
    before: Tensor = field(default_factory=lambda: torch.empty(0))
    kv: KV | None = None


@dataclass(eq=False)
class _State:
    """What a network keeps of the rows of a block: its own keys and values, and the tokens computed last, of which
    those that a row kept have not gone through it. ``kept``: how many, None = as the block says."""

    cache: KVBlock
    ids: Tensor
    features: Tensor
    kept: list[int] | None


class NetworkDrafter:
    """A network that reads the model's features of the tokens so far, and its own of those it drafts (EAGLE)."""

    layers: LayerPlan | None = None

    def __init__(self, network: DraftNetwork, model: UnifiedModel) -> None:
        network.check(model)
        self.network, self.model = network, model
        self.collect = network.collect
        weights = sum(p.numel() for part in model.projections(lm_head=True) for p in part.parameters())
        self.cost = sum(p.numel() for p in network.parameters()) / max(weights, 1)

    def features(self, collected: Sequence[Tensor]) -> Tensor:
        return self.network.features(collected)

    def begin(self, contexts: Sequence[Context], space: int) -> _State:
        rows = [self._moved(context) or self._new(context) for context in contexts]
        self._prefill([row for row in rows if row.kv is None])
        kvs = [row.kv for row in rows if row.kv is not None]
        network: Any = self.network  # a decoder of its own: all that a block asks of a model
        cache = KVBlock(network, kvs, [kv.layouts[0].shape[1] for kv in kvs], space)
        ids, features = (
            pad_sequence(list(part), batch_first=True)
            for part in zip(*((r.ids, r.features) for r in rows), strict=True)
        )
        return _State(cache, ids, features, [len(row.ids) for row in rows])

    def observe(self, block: KVBlock, ids: Tensor, features: Tensor | None) -> None:
        state: _State = block.draft
        self._catch_up(block, state, ids[:, 0])
        assert features is not None
        state.ids, state.features, state.kept = ids, features, None

    def propose(self, batch: DraftBatch, length: int) -> Tensor:
        state: _State = batch.block.draft
        hidden = self._catch_up(batch.block, state, batch.pending)
        assert hidden is not None
        network, cache, tokens = self.network, state.cache, list[Tensor]()
        before = cache.reserve(length)
        while len(tokens) < length:
            logits = network.logits(hidden)[:, 0]
            tokens.append(batch.choose(logits, network.target_ids, self.model.spec.vocabulary))
            if len(tokens) < length:
                x = self.model.embed_tokens(tokens[-1][:, None])
                hidden, _ = network.extrapolated(x, hidden, cache.contexts(1))
                cache.advance()
                cache.took(range(cache.rows), 1)
        cache.truncate(before, [0] * cache.rows)
        return torch.stack(tokens, dim=1)

    def _catch_up(self, block: KVBlock, state: _State, pending: Tensor) -> Tensor | None:
        """Let the tokens that were kept since go through the network, each with the one after it: the last one's output
        [B, 1, D]. None if they have."""
        kept = block.accepted if state.kept is None else state.kept
        if not any(kept):
            return None
        width = max(kept)
        last = torch.tensor([max(n - 1, 0) for n in kept], device=pending.device)[:, None]
        following = state.ids.roll(-1, dims=1)[:, :width].scatter(1, last, pending[:, None])
        before = state.cache.reserve(width)
        x = self.model.embed_tokens(following)
        hidden, _ = self.network(x, state.features[:, :width], state.cache.contexts(width))
        state.cache.truncate(before, kept)
        state.kept = [0] * len(kept)
        return hidden.gather(1, last[..., None].expand(-1, -1, hidden.shape[-1]))

    def _moved(self, context: Context) -> _Row | None:
        """A row that has decoded in another block."""
        if context.slot is None or context.slot.block.draft is None:
            return None
        block, at = context.slot
        state: _State = block.draft
        count = (block.accepted if state.kept is None else state.kept)[at]
        return _Row(state.ids[at, :count], state.features[at, :count], kv=state.cache.row(at))

    def _new(self, context: Context) -> _Row:
        """A row of which only the prefill is computed: its last token is kept back, for the one after it is not yet
        known. Without features (they were not collected) nothing is known of it."""
        device = self.model.device
        for inputs, features in context.computed().draft:
            x, given = inputs[0, 0], features[0, 0]
            return _Row(torch.zeros(1, dtype=torch.long, device=device), given[-1:], x[1:], given[:-1])
        none = torch.zeros(1, self.network.config.hidden, dtype=self.network.dtype, device=device)
        return _Row(torch.zeros(1, dtype=torch.long, device=device), none, none[:0], none[:0])

    def _prefill(self, rows: Sequence[_Row]) -> None:
        """Let what stands before some rows' last tokens go through the network."""
        if not rows:
            return
        layout = TokenLayout.causal([len(row.inputs) for row in rows])
        if not layout.shape[1]:
            like = {"dtype": self.network.dtype, "device": self.network.device}
            whole = [torch.zeros(len(rows), h, 0, d, **like) for h, d in self.network.kv_shape()]  # type: ignore[call-overload]
            kv = KV([(x, x) for x in whole], [layout] * len(whole))
        else:
            x = pad_sequence([row.inputs for row in rows], batch_first=True)
            features = pad_sequence([row.before for row in rows], batch_first=True)
            mask = visible(layout, layout)
            rope = self.network.rope(layout.position.to(x.device))
            context = AttentionContext(rope, None if mask is None else mask.to(x.device))
            _, kvs = self.network(x, features, [context] * len(self.network.kv_shape()))
            kv = KV(kvs, [layout] * len(kvs))
        for n, row in enumerate(rows):
            row.kv = kv.row(n)


def load_drafter(folder: str | Path, model: UnifiedModel) -> Drafter:
    """The drafter in a folder (`models.speculators`)."""
    kind, _, _ = kind_of(folder)
    if kind == "ngrams":
        table, longest = load_ngrams(folder)
        return LookupDrafter(longest, table)
    if kind == "self":
        return SelfDrafter.skipping(model, load_skips(folder))
    return NetworkDrafter(load_network(folder, model), model)
