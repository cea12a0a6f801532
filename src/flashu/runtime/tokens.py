"""Tokens: one or several more of every row, behind its own length in a static cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from flashu.models.layers import Span
from flashu.plan import LayerPlan
from flashu.runtime.cache import KVBlock
from flashu.runtime.context import BlockRow
from flashu.runtime.drafting import DraftBatch, Drafter
from flashu.runtime.graphs import GraphPool
from flashu.runtime.request import Output, Row, StepRequest, shared_out
from flashu.runtime.runner import Runner, Skips
from flashu.runtime.slots import SlotPool


class Tokens:
    """Computes the next tokens of some requests together. ``slots``: where their rows come and go; None: requests
    that go together share a block, made anew when they change."""

    def __init__(
        self, runner: Runner, graphs: GraphPool | None, slots: SlotPool | None = None, drafter: Drafter | None = None
    ) -> None:
        self.runner, self.graphs, self.slots, self.drafter = runner, graphs, slots, drafter
        self.model = runner.model

    def forward(self, group: list[StepRequest]) -> list[Output]:
        """One or several tokens more of every row."""
        if self.slots is not None:
            for request in group:
                self.slots.join(self.model, [row.context for row in request.rows], request.space)
        return self._by_block(group, self._token, None)

    def verify(self, group: list[StepRequest]) -> list[Output]:
        """One token more of every row, and drafted ones behind it."""
        return self._by_block(group, self._verify, self.drafter)

    def _by_block(
        self,
        group: list[StepRequest],
        compute: Callable[[list[StepRequest], KVBlock], list[Output]],
        drafter: Drafter | None,
    ) -> list[Output]:
        outputs: dict[int, Output] = {}
        by_block: dict[int, list[StepRequest]] = {}
        for request in group:
            slot = request.rows[0].context.slot
            by_block.setdefault(0 if slot is None else id(slot.block), []).append(request)
        for part in by_block.values():
            outputs |= zip(map(id, part), compute(part, self._gathered(part, drafter)), strict=True)
        return [outputs[id(request)] for request in group]

    def _gathered(self, group: list[StepRequest], drafter: Drafter | None) -> KVBlock:
        """One block that holds the rows of these requests and of no other: theirs, or a new one, which ``drafter`` will
        draft for."""
        contexts = [row.context for request in group for row in request.rows]
        slot = contexts[0].slot
        if slot is not None and slot.block.select([_slot(row).row for request in group for row in request.rows]):
            slot.block.settle()
            return slot.block
        more = max(request.space for request in group)
        # Where a row was before is known until a block holds it.
        draft = None if drafter is None else drafter.begin(contexts, more)
        if self.graphs is not None:
            block = self.graphs.blocks.take(self.model, contexts, more)
        else:
            block = KVBlock(self.model, [c.computed() for c in contexts], [c.position for c in contexts], more)
            block.hold(contexts)
        block.draft = draft
        return block

    def _token(self, group: list[StepRequest], block: KVBlock) -> list[Output]:
        first = group[0]
        assert first.ids is not None
        size = len(first.ids)
        places = [_slot(row).row for request in group for row in request.rows]
        whole = places == list(range(block.rows))
        ids, skips = _placed(group, block), _skips(group, block)
        similarity: list[Tensor | None] = [None]
        lists = Skips.of(skips, self.model.device)

        def logits(ids: Tensor) -> Tensor:
            x = self.model.embed_tokens(ids)
            plan = first.plan
            hidden, similarity[0] = self.runner.tokens(x, block, plan.layers, lists, plan.probe, first.spans)
            block.advance(size)
            return self.model.logits(hidden[:, -1:], first.codes)[:, 0]

        if first.plan.probe != "off" or self.graphs is None:
            values = logits(ids)
        else:
            values = self.graphs(block, (first.signature, *skips), logits, ids)
        pasts = [block.past(_slot(request.rows[0]).row) for request in group]
        block.took(places, size)
        for request in group:
            for row in request.rows:
                row.context.position += size
                row.context.length += size
        probe = similarity[0]
        return shared_out(
            group,
            values if whole else values[places],
            None,
            probe if whole or probe is None else probe[places],
            [size] * len(group),
            pasts,
        )

    # -- verification ------------------------------------------------------------------------------------------
    def _verify(self, group: list[StepRequest], block: KVBlock) -> list[Output]:
        drafter, first = self.drafter, group[0]
        assert drafter is not None
        lengths = [0 if request.plan.draft is None else request.plan.draft.length for request in group]
        pending, skips = _placed(group, block), _skips(group, block)
        batch = self._draft_batch(group, block, pending[:, 0], skips)
        ids = pending
        if length := self._width(max(lengths)):
            ids = torch.cat((pending, drafter.propose(batch, length)), dim=1)
        size, collect, lists = 1 + length, drafter.collect, Skips.of(skips, self.model.device)
        spans = _wide(first.spans, size)
        similarity: list[Tensor | None] = [None]

        def forward(ids: Tensor) -> Tensor:
            """Logits [B, S, V], and the drafter's features [B, S, D] behind them."""
            x, plan = self.model.embed_tokens(ids), first.plan
            inner = dict.fromkeys(collect, x)
            hidden, similarity[0] = self.runner.tokens(x, block, plan.layers, lists, plan.probe, spans, inner)
            block.advance(size)
            logits = self.model.logits(hidden, first.codes)
            if not collect:
                return logits
            return torch.cat((logits, drafter.features([inner[i] for i in collect])), dim=-1)

        before = block.reserve(size)
        if first.plan.probe != "off" or self.graphs is None:
            values = forward(ids)
        else:
            values = self.graphs(block, (first.signature, size, *skips), forward, ids)
        pasts = [block.past(_slot(request.rows[0]).row) for request in group]
        block.took(range(block.rows), size)
        logits = values[..., : self.model.spec.vocabulary] if collect else values
        drafter.observe(block, ids, values[..., logits.shape[-1] :] if collect else None)
        block.verify(before)
        chances = torch.stack(batch.chances, dim=1) if batch.chances else None
        outputs = []
        for request, length, past in zip(group, lengths, pasts, strict=True):
            at = _slot(request.rows[0]).row
            probe = similarity[0]
            drawn = chances is not None and request.chooser is not None and not request.chooser.greedy
            outputs.append(
                Output(
                    logits[at : at + 1, : length + 1],
                    None,
                    None if probe is None else tuple(probe[at].tolist()),
                    length + 1,
                    past,
                    drafted=ids[at, 1 : length + 1],
                    chances=chances[at, :length] if drawn else None,  # type: ignore[index]
                )
            )
        return outputs

    def _width(self, length: int) -> int:
        """How many tokens are drafted where ``length`` are wanted: few numbers, where each is compiled or captured."""
        few = self.graphs is not None or self.runner.calls.compiled
        return 1 << (length - 1).bit_length() if few and length else length

    def _draft_batch(
        self, group: list[StepRequest], block: KVBlock, pending: Tensor, skips: Sequence[frozenset[int]]
    ) -> DraftBatch:
        first = group[0]
        by_row = {_slot(request.rows[0]).row: request for request in group}
        rows = [by_row.get(n) for n in range(block.rows)]

        def step(ids: Tensor, layers: LayerPlan) -> Tensor:
            shorter = [skip | layers.skip for skip in skips]
            lists = Skips.of(shorter, self.model.device)

            def logits(ids: Tensor) -> Tensor:
                x = self.model.embed_tokens(ids)
                hidden, _ = self.runner.tokens(x, block, layers, lists, "off", first.spans)
                block.advance()
                return self.model.logits(hidden, first.codes)[:, 0]

            if self.graphs is None:
                values = logits(ids[:, None])
            else:
                values = self.graphs(block, ("draft", layers, first.spans, *shorter), logits, ids[:, None])
            block.took(range(block.rows), 1)
            return values

        return DraftBatch(
            block,
            pending,
            [() if request is None else request.known for request in rows],
            [None if request is None else request.chooser for request in rows],
            [0 if request is None or request.plan.draft is None else request.plan.draft.length for request in rows],
            step,
        )


def _slot(row: Row) -> BlockRow:
    assert row.context.slot is not None
    return row.context.slot


def _placed(group: Sequence[StepRequest], block: KVBlock) -> Tensor:
    """The given ids [B, S] of a block's rows; rows that have stopped go along with any token."""
    given = torch.stack([request.ids for request in group for _ in request.rows])  # type: ignore[misc]
    given = given.to(block.position.device)
    places = [_slot(row).row for request in group for row in request.rows]
    if places == list(range(block.rows)):
        return given
    ids = torch.zeros(block.rows, given.shape[1], dtype=torch.long, device=given.device)
    ids[places] = given
    return ids


def _skips(group: Sequence[StepRequest], block: KVBlock) -> list[frozenset[int]]:
    """The layers that each row of a block leaves out."""
    skips = [group[0].plan.layers.skip] * block.rows
    for request in group:
        for row in request.rows:
            skips[_slot(row).row] = request.plan.layers.skip
    return skips


def _wide(spans: tuple[Span, ...], size: int) -> tuple[Span, ...]:
    """The expert of a single token as that of ``size``."""
    return tuple((expert, 0, size) for expert, _, _ in spans)
