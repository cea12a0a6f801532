"""Blocks: all tokens of an image at a time, behind contexts that they leave as they are."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor

from flashu.plan import LayerPlan, Plan
from flashu.runtime.context import KV, Context, behind_space
from flashu.runtime.graphs import GraphPool
from flashu.runtime.layout import Segment, TokenLayout, stack
from flashu.runtime.prefill import Prefills, stacked_or_none
from flashu.runtime.request import Output, Row, StepRequest, shared_out
from flashu.runtime.runner import Runner, Skips, View

PREPARED = 8
"""Batches whose stacked contexts are kept: a run changes between a few layer plans."""
TOGETHER = 4096
"""Tokens beyond which rows of unlike contexts are computed one by one: large products gain nothing by being stacked,
and attention without a mask is quicker."""


@dataclass(frozen=True, eq=False)
class _Prepared:
    """Rows that are computed together, more than once: their stacked contexts, behind space for their own keys and
    values, and what their tokens attend to. ``of``: the contexts, while they live; ``segments`` keeps alive what
    else the key of this entry names by id; ``skips``: by the lists of the rows."""

    of: tuple[ReferenceType[Context], ...]
    segments: tuple[Segment, ...]
    layout: TokenLayout
    past: KV | None
    view: View
    skips: dict[Hashable, Skips] = field(default_factory=dict)


class Blocks:
    """Computes the blocks of some requests together. ``preparing``: (layer plan) -> a context around the work on what
    they have before them, for timing."""

    def __init__(self, runner: Runner, prefills: Prefills, graphs: GraphPool | None) -> None:
        self.runner, self.prefills, self.graphs = runner, prefills, graphs
        self.model = runner.model
        self.preparing: Callable[[LayerPlan | None], AbstractContextManager[Any]] = nullcontext
        self._prepared: OrderedDict[Hashable, _Prepared] = OrderedDict()

    def forward(self, group: list[StepRequest]) -> list[Output]:
        first = group[0]
        rows = tuple(row for request in group for row in request.rows)
        plans = [request.plan for request in group for _ in request.rows]
        contents = [[_segment(row).content] for row in rows]
        kept = None
        if first.features is not None:
            kept = torch.cat([request.features for request in group])  # type: ignore[misc]
            if first.plan.probe == "off":
                return shared_out(group, self._values(first, kept, contents), kept)
            first = replace(first, want="nothing")  # the probe is all that is new
        ready = self._ready(rows, plans, head=first.want == "prediction")
        x = self._embedded([content for (content,) in contents])
        condition = self._condition(first, contents, x.shape[1])
        done = []
        for part, prepared in ready:
            given = [c if c is None or len(c) != len(rows) else c[part] for c in condition]
            done.append(self._computed(first, prepared, plans[part], x[part], given))
        features = torch.cat([features for features, _ in done]) if len(done) > 1 else done[0][0]
        probes = [similarity for _, similarity in done if similarity is not None]
        features = features if kept is None else kept
        values = self._values(group[0], features, contents)
        tokens = _segment(rows[0]).length
        pasts = [request.rows[0].context.length for request in group]
        similarity = torch.cat(probes) if probes else None
        return shared_out(group, values, features, similarity, [tokens] * len(group), pasts)

    def _parts(self, rows: Sequence[Row], plans: Sequence[Plan], tokens: int) -> list[slice]:
        """Which rows are computed together."""
        held = {row.context.held(self._under(plan)) for row, plan in zip(rows, plans, strict=True)}
        if len(rows) * tokens > TOGETHER and len(held) > 1:
            return [slice(n, n + 1) for n in range(len(rows))]
        return [slice(0, len(rows))]

    def _computed(
        self,
        request: StepRequest,
        prepared: _Prepared,
        plans: Sequence[Plan],
        x: Tensor,
        condition: Sequence[Tensor | None],
    ) -> tuple[Tensor, Tensor | None]:
        """The read tokens' features [R, N, d] of rows that go together, and the probe [R, layers]."""
        lists = tuple(plan.layers.skip for plan in plans)
        if lists not in prepared.skips:
            prepared.skips[lists] = Skips.of(lists, self.model.device)
        skips = prepared.skips[lists]
        if request.plan.probe != "off" or self.graphs is None or request.plan.layers.bypasses:
            return self._features(request, prepared, skips, x, condition)
        there = [n for n, tensor in enumerate(condition) if tensor is not None]

        def captured(x: Tensor, *given: Tensor) -> Tensor:
            changed = dict(zip(there, given, strict=True))
            return self._features(request, prepared, skips, x, [changed.get(n) for n in range(len(condition))])[0]

        key = (request.signature, lists)
        return self.graphs(prepared, key, captured, x, *(condition[n] for n in there)), None  # type: ignore[arg-type]

    def _features(
        self,
        request: StepRequest,
        prepared: _Prepared,
        skips: Skips,
        x: Tensor,
        condition: Sequence[Tensor | None],
    ) -> tuple[Tensor, Tensor | None]:
        """The read tokens' output of the decoder, or of the head's blocks [R, N, d]; the probe [R, layers]."""
        done = self.runner.walk(
            x,
            prepared.layout,
            request.plan.layers,
            past=prepared.past,
            view=prepared.view,
            probe=request.plan.probe,
            skips=skips,
        )
        features = done.hidden
        if request.want == "prediction":
            past = None if prepared.past is None else prepared.past.head
            features, _ = self.runner.head(features, condition, prepared.view, past)
        reads = [segment.reads for segment in prepared.segments]
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

    def _values(self, request: StepRequest, features: Tensor, contents: Sequence[Sequence[Any]]) -> Tensor | None:
        """What the runs read, of features [R, N, d]."""
        if request.want == "nothing":
            return None
        if request.want == "logits":
            return self.model.logits(features, request.codes)
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

    def _ready(self, rows: tuple[Row, ...], plans: Sequence[Plan], head: bool) -> list[tuple[slice, _Prepared]]:
        """The rows that are computed together, and what they have before them, which is computed first."""
        self._forget()
        tokens = _segment(rows[0]).length
        pending = any(row.context.pending(self._under(plan)) for row, plan in zip(rows, plans, strict=True))
        parts = [] if pending else self._parts(rows, plans, tokens)
        known = bool(parts) and all(self._key(rows[part], plans[part]) in self._prepared for part in parts)
        with nullcontext() if known else self.preparing(self._under(plans[0])):
            if pending:
                self._fill(rows, plans, head)
                parts = self._parts(rows, plans, tokens)
            return [(part, self._prepare(rows[part], plans[part])) for part in parts]

    def _key(self, rows: Sequence[Row], plans: Sequence[Plan]) -> Hashable:
        held = (
            (id(row.context), row.context.length, self._under(plan), id(_segment(row).layout))
            for row, plan in zip(rows, plans, strict=True)
        )
        return _in_front(plans), *held

    def _prepare(self, rows: tuple[Row, ...], plans: Sequence[Plan]) -> _Prepared:
        """The stacked contexts of rows, which are computed."""
        under, front, key = [self._under(plan) for plan in plans], _in_front(plans), self._key(rows, plans)
        if (known := self._prepared.get(key)) is not None:
            self._prepared.move_to_end(key)
            return known
        layout = stack([row.context.placed(_segment(row)) for row in rows])
        past = stacked_or_none([row.context.kv(plan) for row, plan in zip(rows, under, strict=True)])
        view = self.runner.view(layout, None if past is None else past.layouts[0], front)
        past = behind_space(past, layout.shape[1]) if front and past is not None else past
        prepared = self._prepared[key] = _Prepared(
            tuple(ref(row.context) for row in rows), tuple(map(_segment, rows)), layout, past, view
        )
        if len(self._prepared) > PREPARED:
            self._prepared.popitem(last=False)
        return prepared

    def _forget(self) -> None:
        """Free the stacked contexts of what is over: in a server, an executor lives long."""
        for key in [key for key, known in self._prepared.items() if any(there() is None for there in known.of)]:
            del self._prepared[key]

    def _fill(self, rows: Sequence[Row], plans: Sequence[Plan], head: bool) -> None:
        """Compute what is pending in the contexts of rows, under the layer plan of each."""
        contexts: dict[LayerPlan | None, dict[int, Context]] = {}
        for row, plan in zip(rows, plans, strict=True):
            under = self._under(plan)
            if row.context.pending(under):
                contexts.setdefault(under, {})[id(row.context)] = row.context
        for under, distinct in contexts.items():
            self.prefills.fill(list(distinct.values()), under, head)

    def _under(self, plan: Plan) -> LayerPlan | None:
        """The layer plan that the contexts of a block are computed under; None: whatever they were computed under."""
        if plan.context is not None:
            return plan.context
        return replace(plan.layers, routes=plan.layers.bypasses) if self.model.spec.context == "same" else None


def _in_front(plans: Sequence[Plan]) -> bool:
    """Whether a block's keys come before its contexts': not where tokens pass layers by, which pick among the keys and
    expect the contexts' first."""
    return not plans[0].layers.bypasses


def _segment(row: Row) -> Segment:
    assert row.segment is not None
    return row.segment
