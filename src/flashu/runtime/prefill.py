"""Prefills: what is pending in contexts is computed, once where several begin alike."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from flashu.models.layers import KeyValue, Span
from flashu.plan import LayerPlan, Plan
from flashu.runtime.context import KV, Context, stacked
from flashu.runtime.drafting import Drafter
from flashu.runtime.layout import Segment, TokenLayout, stack
from flashu.runtime.request import Output, StepRequest, shared_out
from flashu.runtime.runner import DecoderOutput, Runner
from flashu.runtime.scores import NEED_QUERY


class Prefills:
    """Computes what is pending in contexts: before a block (`fill`), or as a forward of its own."""

    def __init__(self, runner: Runner, drafter: Drafter | None = None) -> None:
        self.runner, self.drafter = runner, drafter
        self.model = runner.model

    def fill(self, contexts: Sequence[Context], under: LayerPlan | None, head: bool) -> None:
        """Compute what is pending in contexts before a block."""
        plan = Plan(under or LayerPlan())
        if not plan.layers.bypasses:  # which tokens run a layer depends on the whole row
            self._share(contexts, under, plan, head=head)
        for waiting in _batches(contexts, under):
            self._walk(waiting, under, plan, head=head)

    def forward(self, group: list[StepRequest]) -> list[Output]:
        outputs: list[Output | None] = [None] * len(group)
        # Skip lists differ only where the contexts go on from different forwards: then each goes alone.
        alike: dict[Hashable, list[int]] = {}
        for n, request in enumerate(group):
            context = request.rows[0].context
            alike.setdefault((request.plan.layers, context.kv(None) is not None), []).append(n)
        for members in alike.values():
            part = [group[n] for n in members]
            for n, output in zip(members, self._alike(part), strict=True):
                outputs[n] = output
        return outputs  # type: ignore[return-value]

    def _alike(self, group: list[StepRequest]) -> list[Output]:
        plan = group[0].plan
        contexts = [row.context for request in group for row in request.rows]
        # Judges images by the text after them, or tokens by the whole row.
        later = any(route.score in NEED_QUERY for route in plan.layers.drops) or bool(plan.layers.bypasses)
        shared = [0] * len(group)
        # Text is drafted, what is drawn is not.
        draft = any(request.step.task == "understanding" for request in group)
        if not later and plan.probe in ("off", "last"):
            counts = self._share(contexts, None, plan, leave=1, draft=draft)
            owner = [n for n, request in enumerate(group) for _ in request.rows]
            for row, count in enumerate(counts):
                shared[owner[row]] += count
        pasts = [request.rows[0].context.held(None) for request in group]
        widths = [sum(s.length for s in request.rows[0].context.pending(None)) for request in group]
        values: dict[int, Tensor] = {}
        probed: dict[int, Tensor] = {}
        for waiting in _batches(contexts, None):
            done, place = self._walk(waiting, None, plan, read="last", draft=draft)
            if group[0].want == "logits":
                # Only the last token of each row has logits that anybody reads.
                logits = self.model.logits(done.hidden, group[0].codes)[place, 0]
                values |= zip(map(id, waiting), logits, strict=True)
            if done.similarity is not None:
                probed |= zip(map(id, waiting), done.similarity[place], strict=True)
        found, similarity = (
            torch.stack([rows[id(context)] for context in contexts]) if rows else None for rows in (values, probed)
        )
        return shared_out(group, found, None, similarity, widths, pasts, shared)

    def _share(
        self,
        contexts: Sequence[Context],
        under: LayerPlan | None,
        plan: Plan,
        *,
        leave: int = 0,
        head: bool = False,
        draft: bool = False,
    ) -> list[int]:
        """Compute once what several unequal contexts begin with, but for the last ``leave`` segments of each. Returns
        how many tokens of each went through for them all."""
        groups: dict[Hashable, list[Context]] = {}
        for context in contexts:
            pending = context.pending(under)
            if len(pending) > leave and pending[0].key is not None and context.slot is None:
                # Those that go on from one past, or from none.
                groups.setdefault((id(context.kv(under)), pending[0].key), []).append(context)
        common = [group for group in groups.values() if len({c.key or id(c) for c in group}) > 1]
        counts = dict.fromkeys(map(id, contexts), 0)
        if not common:
            return list(counts.values())
        first = [Context.beginning(group[0], _common(group, leave, under), under) for group in common]
        held = [context.held(under) for context in first]
        for part in _batches(first, under):
            self._walk(part, under, replace(plan, probe="off"), head=head, draft=draft)
        for begun, past, group in zip(first, held, common, strict=True):
            kv = begun.kv(under)
            assert kv is not None
            counts[id(group[0])] = begun.length - past
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
        draft: bool = False,
    ) -> tuple[DecoderOutput, list[int]]:
        """Compute what is pending in contexts, none or all of which hold something already; equal ones once. ``draft``:
        keep what the drafter reads, too. Returns the output, and which of its rows is each context's."""
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
        past = stacked_or_none([group[0].kv(under) for group in groups.values()])
        view = self.runner.view(layout, None if past is None else past.layouts[0])
        collect = self.drafter.collect if draft and self.drafter is not None else ()
        done = self.runner.walk(
            x,
            layout,
            plan.layers,
            past=past,
            view=view,
            probe=plan.probe,
            keep=True,
            read=read,
            collect=(-1, *collect) if collect else (),
        )
        kv = done.kv
        assert kv is not None
        if collect:
            kv = replace(kv, draft=self._drafts(past, done.collected))
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

    def _drafts(self, past: KV | None, collected: Sequence[Tensor]) -> Sequence[KeyValue]:
        """What the drafter reads of the tokens so far; nothing where it has missed some."""
        assert self.drafter is not None
        inputs, *outputs = collected
        new = tuple(x[:, None] for x in (inputs, self.drafter.features(outputs)))
        if past is None:
            return [new]  # type: ignore[list-item]
        return [(torch.cat((a, new[0]), dim=2), torch.cat((b, new[1]), dim=2)) for a, b in past.draft]


def _joined(segments: Sequence[Segment]) -> TokenLayout:
    layout = segments[0].layout
    for segment in segments[1:]:
        layout = layout.cat(segment.layout)
    return layout


def _common(contexts: Sequence[Context], leave: int, under: LayerPlan | None) -> int:
    """How many segments these contexts begin with alike, those computed included, but for the last ``leave``."""
    computed = len(contexts[0].segments) - len(contexts[0].pending(under))
    keys = [[segment.key for segment in context.segments] for context in contexts]
    most = min(map(len, keys)) - leave
    alike = (keys[0][n] is not None and len({row[n] for row in keys}) == 1 for n in range(computed, most))
    return next((n for n, same in enumerate(alike, computed) if not same), most)


def _batches(contexts: Sequence[Context], under: LayerPlan | None) -> list[list[Context]]:
    """Contexts with something pending, those together that all or none hold something yet and whose tokens use the
    same experts."""
    groups: dict[Hashable, list[Context]] = {}
    for context in contexts:
        if context.pending(under):
            groups.setdefault((context.kv(under) is None, _spans(context, under)), []).append(context)
    return list(groups.values())


def _spans(context: Context, under: LayerPlan | None) -> tuple[Span, ...]:
    """Which experts the pending tokens use, but for where the last span ends: padding joins it."""
    spans = _joined(context.pending(under)).spans
    return (*spans[:-1], (*spans[-1][:2], 0)) if spans else ()


def stacked_or_none(kvs: Sequence[KV | None]) -> KV | None:
    """The rows of several contexts, of which some may be empty."""
    there = [kv for kv in kvs if kv is not None]
    if not there:
        return None
    if len(there) == len(kvs):
        return stacked(there)
    nothing = TokenLayout.causal([1]).part(0, 0)

    def none(kvs: Sequence[KeyValue]) -> list[KeyValue]:
        return [(k[:1, :, :0], v[:1, :, :0]) for k, v in kvs]

    empty = KV(none(there[0].layers), [nothing] * len(there[0].layouts), none(there[0].head), none(there[0].draft))
    return stacked([empty if kv is None else kv for kv in kvs])
