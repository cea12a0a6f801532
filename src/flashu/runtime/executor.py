"""The executor: computes the forwards that runs ask for, the rows of many runs at a time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from flashu.models.layers import KeyValue
from flashu.plan import LayerPlan, Plan
from flashu.runtime.cache import KVBlock
from flashu.runtime.context import KV, BlockRow, Context, stacked
from flashu.runtime.graphs import GraphPool
from flashu.runtime.layout import Segment, TokenLayout, stack
from flashu.runtime.request import Output, Row, StepRequest
from flashu.runtime.runner import DecoderOutput, Runner, Skips, View
from flashu.runtime.scores import NEED_QUERY

PREPARED = 8
"""Batches whose stacked contexts are kept: a run changes between a few layer plans."""


@dataclass(frozen=True, eq=False)
class _Prepared:
    """Rows that are computed together, more than once: their stacked contexts and what their tokens attend to.
    ``rows`` keeps alive what the key of this entry names by id."""

    rows: tuple[Row, ...]
    layout: TokenLayout
    past: KV | None
    view: View
    skips: Skips


class Executor:
    """Stacks the rows of requests and runs them. ``graphs``: captures forwards of one token and of blocks. For one
    thread."""

    def __init__(self, runner: Runner, graphs: GraphPool | None = None) -> None:
        self.runner = runner
        self.model = runner.model
        # Inner values cannot be observed in a captured forward.
        self.graphs = graphs if runner.observer is None else None
        self._prepared: OrderedDict[Hashable, _Prepared] = OrderedDict()

    def forward(self, requests: Sequence[StepRequest]) -> list[Output]:
        """The outputs of some requests, in order."""
        groups: dict[Hashable, list[int]] = {}
        for n, request in enumerate(requests):
            groups.setdefault(request.signature, []).append(n)
        outputs: dict[int, Output] = {}
        compute = {"prefill": self._prefill, "block": self._block, "token": self._tokens}
        for members in groups.values():
            group = [requests[n] for n in members]
            outputs |= zip(members, compute[group[0].step.kind](group), strict=True)
        return [outputs[n] for n in range(len(requests))]

    # -- blocks ------------------------------------------------------------------------------------------------
    def _block(self, group: list[StepRequest]) -> list[Output]:
        first = group[0]
        contents = [[_segment(row).content] for request in group for row in request.rows]
        kept = None
        if first.features is not None:
            kept = torch.cat([request.features for request in group])  # type: ignore[misc]
            if first.plan.probe == "off":
                return _shared_out(group, self._prediction(kept, contents), kept)
            first = replace(first, want="nothing")  # the probe is all that is new
        prepared = self._prepare(group)
        x = self._embedded([content for (content,) in contents])
        condition = self._condition(first, contents, x.shape[1])
        if first.plan.probe != "off" or self.graphs is None:
            features, similarity = self._features(first, prepared, x, condition)
        else:
            key = (first.signature, prepared.skips.all, *prepared.skips.running)
            there = [n for n, tensor in enumerate(condition) if tensor is not None]

            def captured(x: Tensor, *given: Tensor) -> Tensor:
                changed = dict(zip(there, given, strict=True))
                return self._features(first, prepared, x, [changed.get(n) for n in range(len(condition))])[0]

            similarity = None
            features = self.graphs(prepared, key, captured, x, *(condition[n] for n in there))  # type: ignore[arg-type]
        features, values = features if kept is None else kept, None
        if first.want == "logits":
            values = self.model.logits(features, first.codes)
        elif first.want == "prediction" or kept is not None:
            values = self._prediction(features, contents)
        tokens = prepared.layout.shape[1]
        pasts = [request.rows[0].context.length for request in group]
        return _shared_out(group, values, features, similarity, [tokens] * len(group), pasts)

    def _features(
        self, request: StepRequest, prepared: _Prepared, x: Tensor, condition: Sequence[Tensor | None]
    ) -> tuple[Tensor, Tensor | None]:
        """The read tokens' output of the decoder, or of the head's blocks [R, N, d]; the probe [R, layers]."""
        done = self.runner.walk(
            x,
            prepared.layout,
            request.plan.layers,
            past=prepared.past,
            view=prepared.view,
            probe=request.plan.probe,
            skips=prepared.skips,
        )
        features = done.hidden
        if request.want == "prediction":
            past = None if prepared.past is None else prepared.past.head
            features, _ = self.runner.head(features, condition, prepared.view, past)
        reads = [_segment(row).reads for row in prepared.rows]
        if all(read == reads[0] for read in reads):
            return features[:, reads[0].start : reads[0].stop], done.similarity
        return torch.stack(
            [x[read.start : read.stop] for x, read in zip(features, reads, strict=True)]
        ), done.similarity

    def _condition(
        self, request: StepRequest, contents: Sequence[Sequence[Any]], width: int
    ) -> tuple[Tensor | None, ...]:
        """What conditions the head's blocks, if they will run."""
        if request.want != "prediction" or self.model.head is None:
            return ()
        return self.model.head.condition(contents, width)

    def _prediction(self, features: Tensor, contents: Sequence[Sequence[Any]]) -> Tensor:
        assert self.model.head is not None
        return self.model.head.prediction(features, contents)

    def _embedded(self, contents: Sequence[Any]) -> Tensor:
        """Embedded rows [R, S, D] of equal length; content that several rows share is embedded once."""
        distinct = {id(content): content for content in contents}
        place = {key: n for n, key in enumerate(distinct)}
        index = [place[id(content)] for content in contents]
        embedded = torch.stack(self.model.embed(list(distinct.values())))
        if len(distinct) == 1:
            return embedded.expand(len(contents), -1, -1)
        return embedded if index == list(range(len(distinct))) else embedded[index]

    def _prepare(self, group: list[StepRequest]) -> _Prepared:
        """The stacked contexts of a group's rows, computed if they are not yet."""
        rows = tuple(row for request in group for row in request.rows)
        plans = [request.plan for request in group for _ in request.rows]
        under = [self._under(plan) for plan in plans]
        skips = [plan.layers.skip for plan in plans]
        key = tuple(
            (id(row.context), row.context.length, plan, skip, id(_segment(row).layout))
            for row, plan, skip in zip(rows, under, skips, strict=True)
        )
        if (known := self._prepared.get(key)) is not None:
            self._prepared.move_to_end(key)
            return known
        prepared = self._stack(rows, under, Skips.of(skips, self.model.device), head=group[0].want == "prediction")
        self._prepared[key] = prepared
        if len(self._prepared) > PREPARED:
            self._prepared.popitem(last=False)
        return prepared

    def _stack(self, rows: tuple[Row, ...], under: Sequence[LayerPlan | None], skips: Skips, head: bool) -> _Prepared:
        """The stacked contexts of rows under a layer plan each; what is pending in them is computed first."""
        contexts: dict[LayerPlan | None, dict[int, Context]] = {}
        for row, plan in zip(rows, under, strict=True):
            contexts.setdefault(plan, {})[id(row.context)] = row.context
        for plan, distinct in contexts.items():
            self._fill(list(distinct.values()), plan, head)
        past = _stacked([row.context.kv(plan) for row, plan in zip(rows, under, strict=True)])
        layout = stack([row.context.placed(_segment(row)) for row in rows])
        return _Prepared(rows, layout, past, self.runner.view(layout, None if past is None else past.layouts[0]), skips)

    def _under(self, plan: Plan) -> LayerPlan | None:
        """The layer plan that the contexts of a block are computed under; None: whatever they were computed under."""
        if plan.context is not None:
            return plan.context
        return replace(plan.layers, routes=()) if self.model.spec.context == "same" else None

    def _fill(self, contexts: Sequence[Context], under: LayerPlan | None, head: bool) -> None:
        """Compute what is pending in contexts before a block."""
        plan = Plan(under or LayerPlan())
        self._share(contexts, under, plan, head=head)
        for waiting in _by_past(contexts, under):
            self._walk(waiting, under, plan, head=head)

    # -- prefills ----------------------------------------------------------------------------------------------
    def _prefill(self, group: list[StepRequest]) -> list[Output]:
        outputs: list[Output | None] = [None] * len(group)
        # Skip lists differ only where the contexts go on from different forwards: then each goes alone.
        alike: dict[Hashable, list[int]] = {}
        for n, request in enumerate(group):
            begun = request.rows[0].context.kv(None) is not None
            alike.setdefault((request.plan.layers, begun), []).append(n)
        for members in alike.values():
            part = [group[n] for n in members]
            for n, output in zip(members, self._prefill_alike(part), strict=True):
                outputs[n] = output
        return outputs  # type: ignore[return-value]

    def _prefill_alike(self, group: list[StepRequest]) -> list[Output]:
        plan = group[0].plan
        contexts = [row.context for request in group for row in request.rows]
        later = any(route.score in NEED_QUERY for route in plan.layers.routes)  # judges images by the text after them
        shared = [0] * len(group)
        if not later and plan.probe in ("off", "last"):
            counts = self._share(contexts, None, plan, leave=1)
            owner = [n for n, request in enumerate(group) for _ in request.rows]
            for row, count in enumerate(counts):
                shared[owner[row]] += count
        pasts = [request.rows[0].context.held(None) for request in group]
        widths = [sum(s.length for s in request.rows[0].context.pending(None)) for request in group]
        done, place = self._walk(contexts, None, plan, read="last")
        values = None
        if group[0].want == "logits":
            # Only the last token of each row has logits that anybody reads.
            values = self.model.logits(done.hidden, group[0].codes)[place, 0]
        probed = None if done.similarity is None else done.similarity[place]
        return _shared_out(group, values, None, probed, widths, pasts, shared)

    def _share(
        self, contexts: Sequence[Context], under: LayerPlan | None, plan: Plan, *, leave: int = 0, head: bool = False
    ) -> list[int]:
        """Compute once what several unequal contexts begin with, but for the last ``leave`` segments of each. Returns
        how many tokens of each went through for them all."""
        groups: dict[Hashable, list[Context]] = {}
        for context in contexts:
            pending = context.pending(under)
            if len(pending) > leave and pending[0].key is not None and context.kv(under) is None:
                groups.setdefault(pending[0].key, []).append(context)
        common = [group for group in groups.values() if len({c.key or id(c) for c in group}) > 1]
        counts = dict.fromkeys(map(id, contexts), 0)
        if not common:
            return list(counts.values())
        first = [Context.beginning(group[0], _common(group, leave)) for group in common]
        self._walk(first, under, replace(plan, probe="off"), head=head)
        for begun, group in zip(first, common, strict=True):
            kv = begun.kv(under)
            assert kv is not None
            counts[id(group[0])] = begun.length
            for context in group:
                context.keep(under, kv, len(begun.segments))
        return [counts[id(context)] for context in contexts]

    def _walk(
        self,
        contexts: Sequence[Context],
        under: LayerPlan | None,
        plan: Plan,
        read: Literal["all", "last"] = "all",
        head: bool = False,
    ) -> tuple[DecoderOutput, list[int]]:
        """Compute what is pending in contexts, none or all of which hold something already; equal ones once. Returns
        the output, and which of its rows is each context's."""
        groups: dict[Hashable, list[Context]] = {}
        for context in contexts:
            groups.setdefault(id(context) if context.key is None else context.key, []).append(context)
        pending = [group[0].pending(under) for group in groups.values()]
        contents = [[segment.content for segment in segments] for segments in pending]
        distinct = {id(content): content for row in contents for content in row}
        embedded = dict(zip(distinct, self.model.embed(list(distinct.values())), strict=True))
        rows = [torch.cat([embedded[id(content)] for content in row]) for row in contents]
        x = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        layouts = [_joined(segments) for segments in pending]
        layout = stack(layouts)
        if any(row.padded(layout.shape[1]).spans != layout.spans for row in layouts):
            raise ValueError("rows whose tokens use unlike experts cannot be computed together")
        past = _stacked([group[0].kv(under) for group in groups.values()])
        view = self.runner.view(layout, None if past is None else past.layouts[0])
        done = self.runner.walk(x, layout, plan.layers, past=past, view=view, probe=plan.probe, keep=True, read=read)
        kv = done.kv
        assert kv is not None
        if head:
            assert self.model.head is not None
            condition = self.model.head.condition(contents, x.shape[1])
            _, blocks = self.runner.head(done.hidden, condition, view, None if past is None else past.head, keep=True)
            kv = replace(kv, head=blocks)
        for n, group in enumerate(groups.values()):
            row = kv.row(n)
            for context in group:
                context.keep(under, row, len(context.segments))
        place = {id(context): n for n, group in enumerate(groups.values()) for context in group}
        return done, [place[id(context)] for context in contexts]

    # -- tokens ------------------------------------------------------------------------------------------------
    def _tokens(self, group: list[StepRequest]) -> list[Output]:
        """One or several tokens more of every row."""
        outputs: dict[int, Output] = {}
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
        if slot is not None and set(map(id, slot.block.live())) == set(map(id, contexts)):
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
        ids = torch.zeros(block.rows, size, dtype=torch.long, device=self.model.device)
        skips = [first.plan.layers.skip] * block.rows
        given = [request.ids for request in group for _ in request.rows]
        if places == list(range(block.rows)):
            ids = torch.stack(given)  # type: ignore[arg-type]
        else:  # rows that have stopped go along with any token
            ids[places] = torch.stack(given)  # type: ignore[arg-type]
        for request in group:
            for row in request.rows:
                skips[_slot(row).row] = request.plan.layers.skip
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
        pasts = [block.held[_slot(request.rows[0]).row] + block.taken for request in group]
        block.taken += size
        for request in group:
            for row in request.rows:
                row.context.position += size
                row.context.length += size
        whole = places == list(range(block.rows))
        probe = similarity[0]
        return _shared_out(
            group,
            values if whole else values[places],
            None,
            probe if whole or probe is None else probe[places],
            [size] * len(group),
            pasts,
        )


def _segment(row: Row) -> Segment:
    assert row.segment is not None
    return row.segment


def _slot(row: Row) -> BlockRow:
    assert row.context.slot is not None
    return row.context.slot


def _joined(segments: Sequence[Segment]) -> TokenLayout:
    layout = segments[0].layout
    for segment in segments[1:]:
        layout = layout.cat(segment.layout)
    return layout


def _common(contexts: Sequence[Context], leave: int) -> int:
    """How many segments these contexts begin with alike, but for the last ``leave`` of each."""
    keys = [[segment.key for segment in context.segments] for context in contexts]
    most = min(map(len, keys)) - leave
    alike = (keys[0][n] is not None and len({row[n] for row in keys}) == 1 for n in range(most))
    return next((n for n, same in enumerate(alike) if not same), most)


def _by_past(contexts: Sequence[Context], under: LayerPlan | None) -> list[list[Context]]:
    """Contexts with something pending: those that hold nothing yet, and those that do."""
    waiting = [context for context in contexts if context.pending(under)]
    split = [[c for c in waiting if (c.kv(under) is None) is empty] for empty in (True, False)]
    return [part for part in split if part]


def _stacked(kvs: Sequence[KV | None]) -> KV | None:
    """The rows of several contexts, of which some may be empty."""
    there = [kv for kv in kvs if kv is not None]
    if not there:
        return None
    if len(there) == len(kvs):
        return stacked(there)
    nothing = TokenLayout.causal([1]).part(0, 0)

    def none(kvs: Sequence[KeyValue]) -> list[KeyValue]:
        return [(k[:1, :, :0], v[:1, :, :0]) for k, v in kvs]

    empty = KV(none(there[0].layers), [nothing] * len(there[0].layouts), none(there[0].head))
    return stacked([empty if kv is None else kv for kv in kvs])


def _shared_out(
    group: Sequence[StepRequest],
    values: Tensor | None,
    features: Tensor | None = None,
    similarity: Tensor | None = None,
    tokens: Sequence[int] = (),
    pasts: Sequence[int] = (),
    shared: Sequence[int] = (),
) -> list[Output]:
    """Each request's rows of what a group computed."""
    outputs, start = [], 0
    for n, request in enumerate(group):
        rows = slice(start, start + len(request.rows))
        start = rows.stop
        probed = None if similarity is None else tuple(similarity[rows].mean(0).tolist())
        outputs.append(
            Output(
                None if values is None else values[rows],
                None if features is None else features[rows],
                probed,
                tokens[n] if tokens else 0,
                pasts[n] if pasts else 0,
                shared[n] if shared else 0,
            )
        )
    return outputs
