"""The runner: walks tokens through the decoder's layers as a `LayerPlan` says. Stateless between calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flashu.models.layers import FFNWeights, KeyValue, Past, Rope, Slot, Tap
from flashu.models.protocol import UnifiedModel
from flashu.plan import FULL, LayerPlan, Probe
from flashu.runtime.cache import Cache, View
from flashu.runtime.rooms import Rooms
from flashu.runtime.scores import NEED_QUERY, Inner, dropped
from flashu.runtime.stretches import LENGTH, Stretch
from flashu.runtime.tokens import Tokens, visible

Observer = Callable[[int, str, Tensor, Tokens], None]
"""Called as observer(layer, name, value, tokens) with inner values; for calibration and analysis.
Names: input, query, key, value, ffn (input of the down projection), output."""


@dataclass(frozen=True, eq=False)
class KV:
    """Keys and values of earlier tokens, layer by layer, and which tokens each layer's hold. It never changes."""

    layers: Sequence[KeyValue]
    tokens: Sequence[Tokens]

    def rows(self, index: Tensor) -> KV:
        """The cache of the rows at ``index`` [R]."""
        by_id = {id(t): t.rows(index) for t in self.tokens}
        index = index.to(self.layers[0][0].device)
        return KV([(k[index], v[index]) for k, v in self.layers], [by_id[id(t)] for t in self.tokens])


@dataclass(frozen=True, eq=False)
class Pass:
    """One walk through the decoder. ``hidden`` [B, S', h] is after the final norm."""

    hidden: Tensor
    tokens: Tokens
    kv: KV | Cache | None
    similarity: tuple[float, ...] | None


class Sight:
    """What the tokens of one pass see, layer by layer: their rotary tables and mask, and ``past``."""

    def __init__(self, look: Callable[[Tokens, Tokens | None], View], past: KV | None, view: View | None) -> None:
        self.look, self.past, self.view = look, past, view
        self.of: tuple[Tokens, Tokens | None] | None = None

    def at(self, i: int, tokens: Tokens) -> tuple[View, Past | None]:
        """For layer ``i``. The view given, if any, is that of the first layer."""
        held = None if self.past is None else self.past.tokens[i]
        if self.view is None or (self.of is not None and (self.of[0] is not tokens or self.of[1] is not held)):
            self.view = self.look(tokens, held)
        self.of = (tokens, held)
        return self.view, None if self.past is None else self.past.layers[i]

    def grown(self, layers: Sequence[KeyValue], tokens: Sequence[Tokens]) -> KV:
        """``past`` with what every layer added."""
        return KV(layers, joined(self.past, tokens))


class Runner:
    """Runs a model's rooms. ``banks``: FFN weight triples per layer, by the name a plan calls them."""

    def __init__(
        self,
        model: UnifiedModel,
        banks: Mapping[str, Sequence[FFNWeights]] | None = None,
        rooms: Rooms | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.model = model
        self.banks = banks or {}
        self.rooms = rooms or Rooms()
        self.bound = self.rooms.bind(list(model.layers), model.device)
        self.observer = observer

    def view(self, tokens: Tokens, past: Tokens | None = None, head: bool = False) -> View:
        """Rotary tables and mask for ``tokens`` looking at ``past`` and themselves; ``head``: the flow head's too."""
        device = self.model.device
        mask = visible(tokens, tokens if past is None else past.cat(tokens))
        pos = tokens.pos.to(device)
        head_rope = self.model.head_rope(pos) if head else None
        return View(self.model.rope(pos), None if mask is None else mask.to(device), head_rope)

    def backbone(
        self,
        x: Tensor,
        tokens: Tokens,
        plan: LayerPlan,
        *,
        past: KV | Cache | None = None,
        view: View | None = None,
        probe: Probe = "off",
        keep: bool = False,
    ) -> Pass:
        """Embedded tokens x [B, S, h] through the layers of ``plan``.

        ``past``: keys and values of earlier tokens. ``keep``: return the grown cache; a skipped layer then still
        adds its keys and values. ``probe``: measure each layer's input-output similarity (all layers must run).
        """
        model = self.model
        if isinstance(past, Cache) and keep and self.observer is None and probe == "off" and not plan.routes:
            return Pass(model.norm(self._token(x, plan, past)), tokens, past.grown(), None)
        bank = None if plan.ffn == FULL else self.banks[plan.ffn]
        sight = past if isinstance(past, Cache) else Sight(self.view, past, view)
        # A token that is watched goes layer by layer, which is less work than calling a compiled room.
        rooms = self.bound.layers if isinstance(past, Cache) else self.bound.rooms
        caches: list[KeyValue] = []
        seen_by: list[Tokens] = []
        similarity: list[Tensor] = []
        tapped: dict[str, Tensor] | None = {} if any(r.score in NEED_QUERY for r in plan.routes) else None
        for i, layer in enumerate(model.layers):
            for route in plan.routes:
                if route.layer == i and (index := dropped(inner(tokens, caches[-1], x, tapped), route)) is not None:
                    tokens = tokens.gather(index.cpu())
                    x = x.gather(1, index.clamp(min=0)[..., None].expand(-1, -1, x.shape[-1]))
            seen, earlier = sight.at(i, tokens)
            if i in plan.skip:
                if keep:
                    caches.append(layer.keys_values(x, seen.rope, earlier))
                    seen_by.append(tokens)
                continue
            weights = None if bank is None else bank[i]
            if self.observer is None and tapped is None:
                y, kv = rooms[i](x, seen.rope, seen.mask, earlier, weights)
            else:
                tap = self._tap(i, x, tokens, tapped)
                y, kv = model.layer(i, x, seen.rope, seen.mask, earlier, weights, tap)
                tap("output", y)
            if probe != "off":
                final = probe == "normed" and i == model.num_layers - 1
                similarity.append(cosine(x, model.norm(y) if final else y, tokens, probe))
            if keep or plan.routes:
                caches.append(kv)
                seen_by.append(tokens)
            x = y
        grown = sight.grown(caches, seen_by) if keep else None
        scores = tuple(torch.stack(similarity).tolist()) if similarity else None
        return Pass(model.norm(x), tokens, grown, scores)

    def _token(self, x: Tensor, plan: LayerPlan, cache: Cache) -> Tensor:
        """One token per row, x [B, 1, h], through the layers of ``plan``; nobody looks at what is inside."""
        if plan not in cache.walks:
            cache.walks[plan] = list(self._walk(plan, cache))
        for stretch in cache.walks[plan]:
            x = stretch(x)
        return x

    def _walk(self, plan: LayerPlan, cache: Cache) -> Iterator[Stretch]:
        """The layers of ``plan`` in stretches, of `LENGTH` where so many in a row run and see the same, else of one:
        any set of skipped layers is made of the same two kinds."""
        layers, _, kinds = self.bound
        bank = None if plan.ffn == FULL else self.banks[plan.ffn]
        views, slots = cache.views, cache.slots
        start = 0
        while start < len(layers):
            view, stop = views[start], start + 1
            if start in plan.skip:
                yield partial(_keep, layers[start], view.rope, slots[start])
            else:
                ahead = range(start, start + LENGTH)
                if ahead.stop <= len(layers) and all(i not in plan.skip and views[i] is view for i in ahead):
                    stop = ahead.stop
                part = slice(start, stop)
                ffns = [None] * (stop - start) if bank is None else bank[part]
                assert view.mask is not None
                yield self.rooms.stretches.bind(layers[part], kinds[part], view.rope, view.mask, slots[part], ffns)
            start = stop

    def head(
        self, hidden: Tensor, e_t: Tensor | None, view: View, past: list[KeyValue] | None, image: Tensor | None
    ) -> tuple[Tensor, list[KeyValue]]:
        """The flow head's blocks over normed hidden [B, S, h]; see the model's ``head_body``."""
        assert view.head_rope is not None
        return self.rooms.head(self.model, hidden, e_t, view.head_rope, view.mask, past, image)

    def _tap(self, i: int, x: Tensor, tokens: Tokens, tapped: dict[str, Tensor] | None) -> Tap:
        """Shows a layer's inner values to the observer and keeps the latest of each in ``tapped``."""
        observe = self.observer

        def tap(name: str, value: Tensor) -> None:
            if observe is not None:
                observe(i, name, value, tokens)
            if tapped is not None:
                tapped[name] = value

        tap("input", x)
        return tap


def _keep(layer: Any, rope: Rope, slot: Slot, x: Tensor) -> Tensor:
    """A skipped layer: its keys and values join the cache, the token goes on as it is."""
    layer.keys_values(x, rope, slot)
    return x


def inner(tokens: Tokens, kv: KeyValue, output: Tensor, tapped: dict[str, Tensor] | None) -> Inner:
    """What the layer just run computed of ``tokens``, the newest of its keys and values."""
    key, value = (part[:, :, -tokens.shape[1] :] for part in kv)
    return Inner(tokens, key, value, output, None if tapped is None else tapped["query"])


def joined(past: KV | None, added: Sequence[Tokens]) -> Sequence[Tokens]:
    """The tokens each layer's cache holds after ``added``; layers that held the same tokens share one value."""
    if past is None:
        return added
    pairs = list(zip(past.tokens, added, strict=True))
    unique = {(id(a), id(b)): (a, b) for a, b in pairs}
    grown = {key: a.cat(b) for key, (a, b) in unique.items()}
    return [grown[id(a), id(b)] for a, b in pairs]


def cosine(x: Tensor, y: Tensor, tokens: Tokens, probe: Probe) -> Tensor:
    """Mean cosine similarity of a layer's input and output, over all tokens or the last of each row."""
    similarity = F.cosine_similarity(x.float(), y.float(), dim=-1)
    if probe == "last":
        return similarity.gather(1, tokens.last[:, None].to(x.device)).mean()
    if not bool(tokens.valid.all()):
        valid = tokens.valid.to(x.device)
        return similarity[valid].mean()
    return similarity.mean()
