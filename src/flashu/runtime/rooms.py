"""The rooms of a model as callables: eager, or each compiled once (fullgraph) and shared by all layers."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
import torch.fx.experimental._config as fx_config
from torch import Tensor, nn

from flashu.models.layers import FFNWeights, KeyValue, Past, Rope
from flashu.models.protocol import UnifiedModel
from flashu.runtime.replays import Record
from flashu.runtime.stretches import Stretches


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


def _compiled(room: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    compiled = torch.compile(room, fullgraph=True, dynamic=True, **options)

    @wraps(room)
    def call(*inputs: Any) -> Any:
        # Sizes that happen to agree (two rows, two heads) must not be taken for one size: each would cost a graph.
        with fx_config.patch(use_duck_shape=False):  # type: ignore[attr-defined]
            return compiled(*inputs)

    return call


class Rooms:
    """``Rooms()`` runs eagerly; ``Rooms(compiled=True)`` compiles each kind of room once.

    The plan is branched on outside, so a compiled room never sees it: another FFN is other tensors, another prefix
    another length (a symbolic size). One-token steps have rooms of their own, ``stretches``. ``record`` makes what
    records whole forwards for a run to replay (see `replays`).
    """

    def __init__(self, compiled: bool = False, record: Callable[[], Record] | None = None, **options: Any) -> None:
        self.compiled = compiled
        self.record = record
        self.layer: Callable[..., tuple[Tensor, KeyValue]] = _layer
        self.head: Callable[..., tuple[Tensor, list[KeyValue]]] = _head
        self.stretches = Stretches(compiled, options)
        if compiled:
            layer = _compiled(_layer, options)
            self.layer = lambda room, x, rope, mask, past, ffn: layer(
                room, x, rope, mask, past, full_weights(room) if ffn is None else ffn
            )
            self.head = _compiled(_head, options)
