"""Layers that some tokens bypass: what a router says of each token, which are computed, and what their weight is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from flashu.errors import FlashUError
from flashu.models.layers import AttentionContext, Span, rope_at, tokens_at
from flashu.plan import Route
from flashu.runtime.layout import TokenLayout
from flashu.runtime.view import View

TANH = 0.2
"""Reach of the weight that starts at 1."""


@dataclass(frozen=True, eq=False)
class Rows:
    """What routing asks of the rows of a walk besides their layout. ``lengths``: tokens that the share to keep is of,
    by row (default: those so far); ``forced`` bool [B, S]: tokens that come first (default: as the route says)."""

    lengths: Sequence[int] | None = None
    forced: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Routed:
    """What happens in one layer. ``logits`` [B, S, 2] of the router (None: random routing), ``p`` [B, S]: probability
    of its class 1; ``index`` [B, K]: the tokens computed, ascending, -1 fills up unless ``full``; ``valid`` [B, S]:
    real tokens."""

    route: Route
    logits: Tensor | None
    p: Tensor
    index: Tensor
    valid: Tensor
    full: bool = True

    @property
    def chosen(self) -> Tensor:
        """bool [B, S]: which tokens are computed."""
        marks = torch.zeros(len(self.p), self.p.shape[1] + 1, dtype=torch.bool, device=self.p.device)
        return marks.scatter(1, self._spare, True)[:, :-1]

    def auxiliary(self) -> tuple[Tensor, int]:
        """Cross-entropy of telling whether a token is among those computed: its sum over the real ones, and how many
        they are."""
        if self.logits is None:
            return self.p.new_zeros(()), 0
        known = self.logits[self.valid]
        return F.cross_entropy(known, self.chosen[self.valid].long(), reduction="sum"), len(known)

    @property
    def gate(self) -> Tensor | None:
        """What the layer's part is multiplied by [B, S, 1]; None = nothing."""
        return weight(self.route, self.logits, self.p)

    def taken(self, x: Tensor) -> Tensor:
        """x [B, S, D] of the tokens that are computed."""
        return tokens_at(x, self.index.clamp(min=0))

    def context(
        self, context: AttentionContext, view: View, past: int, asked: Tensor | None = None
    ) -> AttentionContext:
        """What the tokens that are computed attend to: of all that they would, each other and the ``past`` tokens.
        ``asked`` [B, Q]: tokens whose output alone is wanted."""
        index = self.index
        part = narrowed(view, index, past, self.full)
        gate = self.gate if self.route.gate == "ffn" else None
        gate = None if gate is None else self.taken(gate)
        spans = tuple((expert, 0, index.shape[1]) for expert, _, _ in context.spans)
        own = AttentionContext(part.rope, part.mask, context.past, spans, None, gate)
        place = self._place(asked)
        return own if place is None else asking(own, place.clamp(min=0))

    def merged(self, x: Tensor, before: Tensor, y: Tensor, asked: Tensor | None = None) -> Tensor:
        """x [B, S, D] after the layer, whose output is y where it was ``before``; of the tokens at ``asked`` alone, if
        given."""
        place = self._place(asked)
        if self.route.gate == "block" and (gate := self.gate) is not None:
            gate = self.taken(gate)
            gate = gate if place is None else tokens_at(gate, place.clamp(min=0))
            y = before + (y - before) * gate.to(y.dtype)
        if place is not None:
            assert asked is not None
            return torch.where((place >= 0)[..., None], y, tokens_at(x, asked))
        if self.full:
            x = x.scatter(1, self.index[..., None].expand_as(y), y)
        else:
            x = torch.cat((x, x[:, :1]), dim=1).scatter(1, self._spare[..., None].expand_as(y), y)[:, :-1]
        return x if asked is None else tokens_at(x, asked)

    @property
    def _spare(self) -> Tensor:
        """``index`` with -1 as a column behind the last."""
        return self.index % (self.p.shape[1] + 1)

    def _place(self, asked: Tensor | None) -> Tensor | None:
        """Where the ``asked`` tokens are among those computed [B, Q], -1 = nowhere; None: all are to be computed."""
        if asked is None or asked.shape[1] >= self.index.shape[1]:
            return None
        count = torch.arange(self.index.shape[1], device=asked.device).expand_as(self.index)
        places = torch.full((len(asked), self.p.shape[1] + 1), -1, device=asked.device)
        return places.scatter(1, self._spare, count)[:, :-1].gather(1, asked)


@dataclass(frozen=True, eq=False)
class Admitted:
    """Which of the next tokens run a layer: ``ran`` bool [B, S]."""

    route: Route
    logits: Tensor | None
    p: Tensor
    ran: Tensor

    @property
    def ffn_gate(self) -> Tensor | None:
        return weight(self.route, self.logits, self.p) if self.route.gate == "ffn" else None

    def merged(self, x: Tensor, y: Tensor) -> Tensor:
        """x [B, S, D] after the layer, whose output is y."""
        gate = weight(self.route, self.logits, self.p) if self.route.gate == "block" else None
        if gate is not None:
            y = x + (y - x) * gate.to(y.dtype)
        return torch.where(self.ran[..., None], y, x)


def admitted(route: Route, routers: Mapping[str, Tensor], normed: Tensor, spans: Sequence[Span]) -> Admitted:
    """Which tokens [B, S, D] that come one by one run a layer: those that a router finds worth it; without a threshold
    all."""
    if len(spans) > 1:
        raise FlashUError("tokens of several experts cannot be routed: route those of one expert")
    logits, p = judged(route, routers, normed)
    if route.threshold is None:
        return Admitted(route, logits, p, torch.ones_like(p, dtype=torch.bool))
    # Random routing has no threshold of its own: it keeps its share.
    return Admitted(route, logits, p, p >= (1 - route.keep if logits is None else route.threshold))


def choose(
    route: Route,
    routers: Mapping[str, Tensor],
    normed: Tensor,
    layout: TokenLayout,
    held: TokenLayout | None = None,
    rows: Rows | None = None,
) -> Routed:
    """Which of the tokens [B, S, D], after the layer's first norm, a layer computes that holds ``held`` tokens."""
    if len(layout.spans) > 1:
        raise FlashUError("rows whose tokens use several experts cannot be routed: route those of one expert")
    rows = rows or Rows()
    logits, p = judged(route, routers, normed)
    forced = rows.forced
    if forced is None and route.force == "text":
        forced = ~layout.visual.to(p.device)
    valid, many = layout.valid.to(p.device), counts(route, layout, held, rows)
    return Routed(route, logits, p, best(p, valid, forced, many), valid, min(many) == max(many))


def judged(route: Route, routers: Mapping[str, Tensor], normed: Tensor) -> tuple[Tensor | None, Tensor]:
    """A router's logits [B, S, 2] and the probability [B, S] of its class 1, in fp32."""
    if route.router is None:
        return None, torch.rand(normed.shape[:2], device=normed.device)
    if route.router not in routers:
        raise FlashUError(f"there is no router {route.router!r}: give the routers that this plan was trained with")
    with torch.autocast(normed.device.type, enabled=False):
        logits = F.linear(normed.float(), routers[route.router].float())
        return logits, logits.softmax(-1)[..., 1]


def weight(route: Route, logits: Tensor | None, p: Tensor) -> Tensor | None:
    """What the layer's part is multiplied by [B, S, 1]; None = nothing."""
    if route.gate == "none" or logits is None:
        return None
    if route.scale == "tanh":
        p = 1 + TANH * (logits[..., 1] - logits[..., 0]).tanh()
    return (2 * p if route.scale == "2p" else p)[..., None]


def counts(route: Route, layout: TokenLayout, held: TokenLayout | None, rows: Rows) -> list[int]:
    """Tokens to compute of each row: its share of all so far, less those that were computed of the past; at least
    one."""
    if rows.lengths is not None:
        # Padding would come last, and nothing sees it.
        given = zip(layout.lengths, rows.lengths, strict=True)
        return [max(1, min(own, route.count(length))) for own, length in given]
    so_far = (layout.order.masked_fill(~layout.valid, -1).amax(1) + 1).tolist()
    before = [0] * len(so_far) if held is None else held.lengths
    pairs = zip(layout.lengths, so_far, before, strict=True)
    return [max(1, min(own, route.count(total) - past)) for own, total, past in pairs]


def best(p: Tensor, valid: Tensor, forced: Tensor | None, counts: Sequence[int]) -> Tensor:
    """Indices [B, max(counts)] of each row's best ``counts`` tokens, ascending, -1 at the end of shorter rows. Forced
    ones come before the others, padding last; of equal ones the lower index."""
    score = p.detach() if forced is None else p.detach() + forced
    order = score.masked_fill(~valid, -1.0).argsort(dim=1, descending=True, stable=True)
    index = order[:, : max(counts)]
    if min(counts) == max(counts):
        return index.sort(dim=1).values
    beyond = torch.arange(index.shape[1], device=p.device) >= torch.tensor(counts, device=p.device)[:, None]
    index = index.masked_fill(beyond, p.shape[1]).sort(dim=1).values
    return index.masked_fill(index == p.shape[1], -1)


def narrowed(view: View, index: Tensor, past: int, full: bool) -> View:
    """What the tokens at ``index`` [B, K] attend to: each other, as before, and all ``past`` tokens that they did.
    ``full``: no index is -1."""
    at = index.clamp(min=0)
    rope = rope_at(view.rope, at)
    mask = view.mask
    if isinstance(mask, str) or (mask is None and full):
        return View(rope, mask)
    if mask is None:
        width = view.rope[0].shape[2]
        mask = torch.ones(1, 1, width, past + width, dtype=torch.bool, device=at.device)
    rows = mask.expand(len(at), -1, -1, -1).gather(2, at[:, None, :, None].expand(-1, -1, -1, mask.shape[-1]))
    own = rows.gather(3, (at + past)[:, None, None, :].expand(-1, -1, at.shape[1], -1))
    # A filler is seen by nobody but itself, which keeps its (unused) output finite.
    own = own & (index >= 0)[:, None, None, :] | torch.eye(at.shape[1], dtype=torch.bool, device=at.device)
    return View(rope, torch.cat((rows[..., :past], own), dim=-1))


def asking(context: AttentionContext, query: Tensor) -> AttentionContext:
    """The context for the output of the tokens at ``query`` [B, Q] alone."""
    mask = context.mask
    if isinstance(mask, str):
        mask = (torch.arange(context.rope[0].shape[2], device=query.device) <= query[..., None])[:, None]
    elif mask is not None:
        mask = mask.expand(len(query), -1, -1, -1).gather(2, query[:, None, :, None].expand(-1, -1, -1, mask.shape[-1]))
    gate = None if context.gate is None else tokens_at(context.gate, query)
    return context._replace(mask=mask, query=query, gate=gate)
