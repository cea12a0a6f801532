"""Tokens: one or several more of every row, behind its own length in a static cache."""

from __future__ import annotations

import torch
from torch import Tensor

from flashu.runtime.cache import KVBlock
from flashu.runtime.context import BlockRow
from flashu.runtime.graphs import GraphPool
from flashu.runtime.request import Output, Row, StepRequest, shared_out
from flashu.runtime.runner import Runner, Skips
from flashu.runtime.slots import SlotPool


class Tokens:
    """Computes the next tokens of some requests together. ``slots``: where their rows come and go; None: requests
    that go together share a block, made anew when they change."""

    def __init__(self, runner: Runner, graphs: GraphPool | None, slots: SlotPool | None = None) -> None:
        self.runner, self.graphs, self.slots = runner, graphs, slots
        self.model = runner.model

    def forward(self, group: list[StepRequest]) -> list[Output]:
        """One or several tokens more of every row."""
        outputs: dict[int, Output] = {}
        if self.slots is not None:
            for request in group:
                self.slots.join(self.model, [row.context for row in request.rows], request.space)
        by_block: dict[int, list[StepRequest]] = {}
        for request in group:
            slot = request.rows[0].context.slot
            by_block.setdefault(0 if slot is None else id(slot.block), []).append(request)
        for part in by_block.values():
            outputs |= zip(map(id, part), self._token(part, self._gathered(part)), strict=True)
        return [outputs[id(request)] for request in group]

    def _gathered(self, group: list[StepRequest]) -> KVBlock:
        """One block that holds the rows of these requests and of no other: theirs, or a new one."""
        contexts = [row.context for request in group for row in request.rows]
        slot = contexts[0].slot
        if slot is not None and slot.block.select([_slot(row).row for request in group for row in request.rows]):
            return slot.block
        more = max(request.space for request in group)
        if self.graphs is not None:
            return self.graphs.blocks.take(self.model, contexts, more)
        block = KVBlock(self.model, [c.computed() for c in contexts], [c.position for c in contexts], more)
        block.hold(contexts)
        return block

    def _token(self, group: list[StepRequest], block: KVBlock) -> list[Output]:
        first = group[0]
        assert first.ids is not None
        size = len(first.ids)
        places = [_slot(row).row for request in group for row in request.rows]
        whole = places == list(range(block.rows))
        ids = torch.stack([request.ids for request in group for _ in request.rows])  # type: ignore[misc]
        skips = [request.plan.layers.skip for request in group for _ in request.rows]
        if not whole:  # rows that have stopped go along with any token
            ids = ids.new_zeros(block.rows, size).index_copy(0, torch.tensor(places, device=ids.device), ids)
            own, skips = dict(zip(places, skips, strict=True)), [first.plan.layers.skip] * block.rows
            skips = [own.get(row, skip) for row, skip in enumerate(skips)]
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


def _slot(row: Row) -> BlockRow:
    assert row.context.slot is not None
    return row.context.slot
