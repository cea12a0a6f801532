"""The runner: walks tokens through the decoder's layers as a `LayerPlan` says. Stateless between calls."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from flashu.errors import FlashUError
from flashu.models.ffn import FFNWeights, Tap
from flashu.models.layers import AttentionContext, Front, KeyValue, Past, Slot, Span, tokens_at
from flashu.models.protocol import UnifiedModel
from flashu.plan import FULL, LayerPlan, Probe
from flashu.runtime import routing
from flashu.runtime.cache import KVBlock
from flashu.runtime.compile import SEGMENTS, LayerCalls, hooked, run_layer, run_segment
from flashu.runtime.context import KV
from flashu.runtime.layout import TokenLayout, visible
from flashu.runtime.routing import Routed, Rows
from flashu.runtime.scores import NEED_QUERY, Inner, dropped
from flashu.runtime.view import View

Observer: TypeAlias = Callable[[int, str, str, Tensor, TokenLayout], None]
"""Called as observer(layer, expert, name, value, layout) with inner values; for calibration and analysis.
Names: input, query, key, value, ffn (input of the output projection; of one expert and its tokens), output."""
Bank: TypeAlias = Mapping[tuple[int, str], FFNWeights]
"""FFN weights of each (layer, expert)."""


@dataclass(frozen=True, eq=False)
class DecoderOutput:
    """One walk through the decoder. ``hidden`` [B, S', D] is after the final norm; ``kv``: past and new keys and
    values, if kept; ``similarity`` [B, layers] of each layer's input and output, if probed; ``routed``: what happened
    in each layer that tokens could bypass; ``collected``: outputs [B, S, D] of layers, as asked for."""

    hidden: Tensor
    layout: TokenLayout
    kv: KV | None = None
    similarity: Tensor | None = None
    routed: tuple[Routed, ...] = ()
    collected: Sequence[Tensor] = ()


@dataclass
class Skips:
    """Which rows leave out which layers. ``all``: layers that every row leaves out; ``running``: the rows [R] that run
    a layer which some leave out."""

    all: frozenset[int]
    running: Mapping[int, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, skips: Sequence[frozenset[int]], device: torch.device) -> Skips:
        every = frozenset.intersection(*skips)
        some = frozenset.union(*skips) - every
        rows = {i: torch.tensor([n for n, s in enumerate(skips) if i not in s], device=device) for i in some}
        return cls(every, rows)


class Runner:
    """Runs a model's layers. ``banks``: pruned FFN weights, ``routers``: weights [2, D] of routers, both by the names a
    plan calls them."""

    def __init__(
        self,
        model: UnifiedModel,
        banks: Mapping[str, Bank] | None = None,
        calls: LayerCalls | None = None,
        observer: Observer | None = None,
        routers: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.model = model
        self.routers = routers or {}
        self.calls = calls or LayerCalls()
        self.observer = observer
        self._layers = list(model.layers)
        blocks = () if model.head is None else model.head.blocks
        # What has hooks runs eagerly.
        watched = (*self._layers, *blocks) if self.calls.compiled else ()
        self._eager = {id(layer) for layer in watched if hooked(layer)}
        self._ffns: dict[str, list[dict[str, FFNWeights] | None]] = {FULL: [None] * len(self._layers)}
        for name, bank in (banks or {}).items():
            by_layer: list[dict[str, FFNWeights] | None] = [{} for _ in self._layers]
            for (layer, expert), weights in bank.items():
                by_layer[layer][expert] = weights  # type: ignore[index]
            self._ffns[name] = by_layer

    def view(self, layout: TokenLayout, past: TokenLayout | None = None, front: bool = False) -> View:
        """For tokens that look at ``past`` and at themselves; ``front``: their own keys come first (see `Front`)."""
        model = self.model
        keys = layout if past is None else layout.cat(past) if front else past.cat(layout)
        mask = visible(layout, keys)
        position = layout.position.to(model.device)
        head_rope = model.head.rope(position) if model.head is not None and model.head.blocks else None
        return View(model.rope(position), None if mask is None else mask.to(model.device), head_rope)

    def walk(
        self,
        x: Tensor,
        layout: TokenLayout,
        plan: LayerPlan,
        *,
        past: KV | None = None,
        view: View | None = None,
        probe: Probe = "off",
        keep: bool = False,
        skips: Skips | None = None,
        read: Literal["all", "last"] | Tensor = "all",
        rows: Rows | None = None,
        collect: Sequence[int] = (),
    ) -> DecoderOutput:
        """Embedded tokens x [B, S, D] through the layers.

        ``past``: keys and values of earlier tokens. ``keep``: return them with the new ones; a skipped layer then still
        adds its own. ``probe``: measure each layer's input-output similarity (all layers must run). ``skips``: where
        rows skip different layers. ``read``: every token's hidden state, the last valid one's of each row, or those at
        indices [B, Q], which are then all that the last layer computes, besides keys and values. ``rows``: what routing
        asks of the rows. ``collect``: layers whose outputs are wanted, of the tokens that the last layer holds; -1 =
        the embedded tokens.
        """
        model, ffns = self.model, self._ffns[plan.ffn]
        skips = skips or Skips(plan.skip)
        kept: list[KeyValue] = []
        kept_of: list[TokenLayout] = []
        similarity: list[Tensor] = []
        tapped: dict[str, Tensor] | None = {} if any(r.score in NEED_QUERY for r in plan.drops) else None
        seen: tuple[TokenLayout, TokenLayout | None] | None = None
        bypasses = {route.layer: route for route in plan.bypasses}
        routed: list[Routed] = []
        narrowed = False
        """Whether x holds the tokens that are read alone."""
        collected = {-1: x} if -1 in collect else {}
        for i, layer in enumerate(self._layers):
            for route in plan.drops:
                if route.layer != i:
                    continue
                index = dropped(_inner(layout, kept[-1], x, tapped), route)
                if index is not None:
                    layout = layout.gather(index.cpu())
                    stay = index.clamp(min=0)[..., None].expand(-1, -1, x.shape[-1])
                    x = x.gather(1, stay)
                    collected = {n: value.gather(1, stay) for n, value in collected.items()}
            held = None if past is None else past.layouts[i]
            if view is None or (seen is not None and (seen[0] is not layout or seen[1] is not held)):
                view = self.view(layout, held, past is not None and isinstance(past.layers[i], Front))
            seen = (layout, held)
            context = AttentionContext(view.rope, view.mask, None if past is None else past.layers[i], layout.spans)
            if i in skips.all:
                if keep:
                    kept.append(layer.keys_values(x, context))
                    kept_of.append(layout)
                if i in collect:
                    collected[i] = x
                continue
            if i in bypasses:
                if i in skips.running or probe != "off" or tapped is not None:
                    raise FlashUError(f"layer {i} has a router: it is not probed, nor skipped by some rows")
                asked = read if isinstance(read, Tensor) and i == len(self._layers) - 1 else None
                done = routing.choose(bypasses[i], self.routers, layer.normed(x, layout.spans), layout, held, rows)
                own = done.context(context, view, 0 if held is None else held.shape[1], asked)
                taken = done.taken(x)
                y, kv = self._run(i, taken, own, ffns[i], None, False)
                x = done.merged(x, own.asked(taken), y, asked)
                routed.append(done)
                narrowed = asked is not None
                if keep:
                    kept.append(kv)
                    kept_of.append(layout.gather(done.index.cpu()))
                continue
            if isinstance(read, Tensor) and i == len(self._layers) - 1 and probe == "off":
                context, narrowed = routing.asking(context, read), True
            if self.observer is None and tapped is None:
                y, kv = self._run(i, x, context, ffns[i], skips.running.get(i), keep)
            else:
                tap = self._tap(i, x, layout, tapped)
                y, kv = layer(x, context, ffns[i], tap)
                tap("output", y)
            if probe != "off":
                final = probe == "normed" and i == len(self._layers) - 1
                similarity.append(cosine(x, model.norm(y, layout.spans) if final else y, layout, probe))
            if keep or plan.drops:
                kept.append(kv)
                kept_of.append(layout)
            x = y
            if i in collect:
                collected[i] = x
        if isinstance(read, Tensor):
            x = x if narrowed else tokens_at(x, read)
            spans: tuple[Span, ...] = ((layout.spans[0][0], 0, x.shape[1]),) if layout.spans else ()
        elif read == "last":
            x = x.gather(1, layout.last.to(x.device)[:, None, None].expand(-1, 1, x.shape[-1]))
            spans = _last_span(layout)
        else:
            spans = layout.spans
        hidden = model.norm(x, spans)
        grown = KV(kept, _joined(past, kept_of)) if keep else None
        probed = torch.stack(similarity, dim=1) if similarity else None
        return DecoderOutput(hidden, layout, grown, probed, tuple(routed), [collected[i] for i in collect])

    def _run(
        self,
        i: int,
        x: Tensor,
        context: AttentionContext,
        ffn: dict[str, FFNWeights] | None,
        rows: Tensor | None,
        keep: bool,
    ) -> tuple[Tensor, KeyValue]:
        """Layer i on all rows, or on those at ``rows`` alone; the others pass, and only add keys and values."""
        call = run_layer if id(self._layers[i]) in self._eager else self.calls.layer
        if rows is None:
            return call(self._layers[i], x, context, ffn)
        y, kv = call(self._layers[i], x[rows], _rows(context, rows), ffn)
        if keep:
            kv = self._layers[i].keys_values(x, context)
        return x.index_copy(0, rows, y), kv

    def tokens(
        self,
        x: Tensor,
        block: KVBlock,
        plan: LayerPlan,
        skips: Skips,
        probe: Probe = "off",
        spans: tuple[Span, ...] = (),
        collected: dict[int, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The next tokens of every row of a block, x [B, S, D]: (normed hidden, similarity). Their keys and values go
        into the block, which is not advanced. A row that skips a layer still adds its keys and values there; a token
        that bypasses one adds none. ``collected``: the outputs of the layers that are its keys are put there."""
        contexts = block.contexts(x.shape[1], spans)
        ffns = self._ffns[plan.ffn]
        collected = {} if collected is None else collected
        similarity: list[Tensor] = []
        every = range(len(self._layers))
        bypasses = {route.layer: route for route in plan.bypasses}
        start = 0
        while start < len(every):
            if start in skips.all:
                self._layers[start].keys_values(x, contexts[start])
                if start in collected:
                    collected[start] = x
                start += 1
                continue
            if start in bypasses:
                if start in skips.running or probe != "off":
                    raise FlashUError(
                        f"layer {start} is bypassed by a router: it is not probed, nor skipped by some rows"
                    )
                route = bypasses[start]
                done = routing.admitted(route, self.routers, self._layers[start].normed(x, spans), spans)
                own = block.entered(start, contexts[start], done.ran)._replace(gate=done.ffn_gate)
                y, _ = self._run(start, x, own, ffns[start], None, False)
                x, start = done.merged(x, y), start + 1
                continue
            plain = probe == "off" and self.observer is None
            stop = start + (self._together(start, skips, bypasses) if plain else 1)
            part = slice(start, stop)
            if plain:
                call = run_segment if id(self._layers[start]) in self._eager else self.calls.segment
                last = stop == len(every) and start not in skips.running and stop - 1 not in collected
                inner = tuple(i - start for i in range(start, stop - 1) if i in collected)
                y, within = call(
                    self._layers[part], x, contexts[part], ffns[part], self.model.norm if last else None, inner
                )
                collected.update((start + n, value) for n, value in zip(inner, within, strict=True))
                if last:
                    return y, None
            else:
                layout = _nowhere(x, spans)
                tap = self._tap(start, x, layout, None)
                y, _ = self._layers[start](x, contexts[start], ffns[start], tap)
                tap("output", y)
                if probe != "off":
                    final = probe == "normed" and start == len(every) - 1
                    similarity.append(cosine(x, self.model.norm(y, spans) if final else y, layout, probe))
            if start in skips.running:
                runs = torch.zeros(len(x), dtype=torch.bool, device=x.device).index_fill(0, skips.running[start], True)
                y = torch.where(runs[:, None, None], y, x)
            x, start = y, stop
            if stop - 1 in collected:
                collected[stop - 1] = x
        return self.model.norm(x, spans), torch.stack(similarity, dim=1) if similarity else None

    def _together(self, start: int, skips: Skips, bypasses: Container[int]) -> int:
        """How many layers from ``start`` on are called as one: those that every row runs, none of them hooked."""
        for size in SEGMENTS:
            ahead = range(start, start + size)
            if ahead.stop <= len(self._layers) and not any(
                i in skips.all or i in skips.running or i in bypasses or id(self._layers[i]) in self._eager
                for i in ahead
            ):
                return size
        return 1

    def head(
        self,
        hidden: Tensor,
        condition: Sequence[Tensor | None],
        view: View,
        past: Sequence[KeyValue] | None,
        *,
        keep: bool = False,
    ) -> tuple[Tensor, list[KeyValue]]:
        """The head's blocks over normed hidden states [B, S, D]: features [B, S, d], and each block's keys and values,
        if they are to be kept."""
        head = self.model.head
        assert head is not None
        x = head.enter(hidden)
        kept = []
        for n, block in enumerate(head.blocks):
            assert view.head_rope is not None
            context = AttentionContext(view.head_rope, view.mask, None if past is None else past[n])
            # A context's pass through the head comes once: not worth compiling.
            eager = keep or id(block) in self._eager
            x, kv = (run_layer if eager else self.calls.head_block)(block, x, context, *condition)
            if keep:
                kept.append(kv)
        return x, kept

    def _tap(self, i: int, x: Tensor, layout: TokenLayout, tapped: dict[str, Tensor] | None) -> Tap:
        """Shows a layer's inner values to the observer and keeps the latest of each in ``tapped``."""
        observe = self.observer
        only = self.model.spec.experts[0]

        def tap(name: str, value: Tensor, span: Span | None = None) -> None:
            if observe is not None:
                expert, own = only, layout
                if span is not None:
                    expert, own = span[0], layout.part(span[1], span[2])
                observe(i, expert, name, value, own)
            if tapped is not None:
                tapped[name] = value

        tap("input", x)
        return tap


def _rows(context: AttentionContext, rows: Tensor) -> AttentionContext:
    """The context of some rows."""

    def pick(x: Tensor) -> Tensor:
        return x if len(x) == 1 else x[rows]

    rope = pick(context.rope[0]), pick(context.rope[1])
    past: Past | None = context.past
    if past is not None:
        chosen = [x[rows] for x in past]
        past = type(past)(*chosen) if isinstance(past, Slot | Front) else (chosen[0], chosen[1])
    mask = pick(context.mask) if isinstance(context.mask, Tensor) else context.mask
    return context._replace(rope=rope, mask=mask, past=past)


def _last_span(layout: TokenLayout) -> tuple[Span, ...]:
    """The expert of the last token, as that of a single one."""
    return ((layout.spans[-1][0], 0, 1),) if layout.spans else ()


def _nowhere(x: Tensor, spans: tuple[Span, ...]) -> TokenLayout:
    """Valid text tokens [B, S] for observers of a decode, which ask nothing of their places."""
    at = torch.zeros(x.shape[:2], dtype=torch.long)
    return TokenLayout(
        at, at, at, torch.ones(at.shape, dtype=torch.bool), torch.zeros(at.shape, dtype=torch.bool), spans
    )


def _inner(layout: TokenLayout, kv: KeyValue, output: Tensor, tapped: dict[str, Tensor] | None) -> Inner:
    """What the layer just run computed of the tokens, the newest of its keys and values."""
    key, value = (part[:, :, -layout.shape[1] :] for part in kv)
    return Inner(layout, key, value, output, None if tapped is None else tapped["query"])


def _joined(past: KV | None, added: Sequence[TokenLayout]) -> Sequence[TokenLayout]:
    """The tokens each layer holds after ``added``; layers that held the same tokens share one value."""
    if past is None:
        return added
    pairs = list(zip(past.layouts, added, strict=True))
    unique = {(id(a), id(b)): (a, b) for a, b in pairs}
    grown = {key: a.cat(b) for key, (a, b) in unique.items()}
    return [grown[id(a), id(b)] for a, b in pairs]


def cosine(x: Tensor, y: Tensor, layout: TokenLayout, probe: Probe) -> Tensor:
    """Mean cosine similarity [B] of a layer's input and output, over all valid tokens of a row or its last."""
    similarity = F.cosine_similarity(x.float(), y.float(), dim=-1)
    if probe == "last":
        return similarity.gather(1, layout.last[:, None].to(x.device))[:, 0]
    if bool(layout.valid.all()):
        return similarity.mean(1)
    valid = layout.valid.to(x.device)
    return (similarity * valid).sum(1) / valid.sum(1)
