"""The rooms of a model as callables: eager, or each compiled once (fullgraph) and shared by all layers."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flashu.models.layers import FFNWeights, KeyValue, Past, Rope
from flashu.models.protocol import UnifiedModel
from flashu.runtime.programs import Programs, kind_of, program
from flashu.runtime.replays import Record
from flashu.runtime.stretches import Stretches

LayerRoom = Callable[..., tuple[Tensor, KeyValue]]


def _layer(
    layer: nn.Module,
    x: Tensor,
    rope: Rope,
    mask: Tensor | None,
    past: Past | None,
    ffn: FFNWeights | None,
) -> tuple[Tensor, KeyValue]:
    return layer(x, rope, mask, past, ffn)


def _head(
    model: UnifiedModel,
    hidden: Tensor,
    e_t: Tensor | None,
    rope: Rope,
    mask: Tensor | None,
    past: list[KeyValue] | None,
    image: Tensor | None,
) -> tuple[Tensor, list[KeyValue]]:
    return model.head_body(hidden, e_t, rope, mask, past, image)


def full_weights(layer: Any) -> FFNWeights:
    """A layer's own FFN as plain tensors, so that to a compiled room the full and a pruned FFN are the same code."""
    gate, up, down = layer.mlp.weights()
    with torch.inference_mode(False):  # torchao's tensors cannot be detached under it
        return gate.detach(), up.detach(), down.detach()


class Bound(NamedTuple):
    """A model's layers, the rooms that run them, as room(x, rope, mask, past, ffn), and what they have in common with
    others, if they are compiled."""

    layers: Sequence[Any]
    rooms: Sequence[LayerRoom]
    kinds: Sequence[Hashable]


class Rooms:
    """``Rooms()`` runs eagerly; ``Rooms(compiled=True)`` compiles each kind of room once.

    The plan is branched on outside, so a compiled room never sees it: another FFN is other tensors, another prefix
    another length (a symbolic size). One-token steps have rooms of their own, ``stretches``. ``record`` makes what
    records whole forwards for a run to replay (see `replays`).
    """

    def __init__(self, compiled: bool = False, record: Callable[[], Record] | None = None, **options: Any) -> None:
        self.record = record
        self.head: Callable[..., tuple[Tensor, list[KeyValue]]] = _head
        self.stretches = Stretches(compiled, options)
        self._compiled = compiled
        if compiled:
            self.head = program(_head, True, options)
            self._layer = program(_layer, True, options)
            self._layers = Programs(_layer, True, options)

    def bind(self, layers: Sequence[Any], device: torch.device) -> Bound:
        """The layers of a model on ``device`` as rooms, for one request: they are taken for what they now are."""
        if not self._compiled:
            return Bound(layers, layers, [None] * len(layers))
        kinds = [kind_of(layer) for layer in layers]
        return Bound(layers, [self._room(*pair, device) for pair in zip(layers, kinds, strict=True)], kinds)

    def _room(self, layer: Any, kind: Hashable, device: torch.device) -> LayerRoom:
        """A layer something was done to stays eager. One of tensors that are not plain is checked at every call."""
        if kind is None and all(type(weight) is nn.Parameter for weight in layer.parameters()):
            return layer
        room, own = self._layers.of([kind], device) or self._layer, full_weights(layer)
        return lambda x, rope, mask, past, ffn: room(layer, x, rope, mask, past, own if ffn is None else ffn)
