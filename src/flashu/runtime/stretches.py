"""Stretches: neighbouring layers that take one token per row over a static cache, as one call, eager or compiled.

What a token costs on a small model is the calling, not the arithmetic; compiled, every kind of stretch is a program of
fixed shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from flashu.models.layers import FFNWeights, Rope, Slot
from flashu.runtime.programs import Programs

LENGTH = 4
"""Layers in a stretch. Each is code to compile; each stretch is a call to pay for."""
Stretch = Callable[[Tensor], Tensor]
"""x [B, 1, h] -> x [B, 1, h]; keys and values go into the cache."""


def _stretch(
    layers: Sequence[nn.Module],
    rope: Rope,
    mask: Tensor,
    slots: Sequence[Slot],
    ffns: Sequence[FFNWeights | None],
    x: Tensor,
) -> Tensor:
    for layer, slot, ffn in zip(layers, slots, ffns, strict=True):
        x, _ = layer(x, rope, mask, slot, ffn)
    return x


class Stretches:
    """Binds layers to what they read. ``compiled``: as programs, where there are any for them."""

    def __init__(self, compiled: bool, options: dict[str, Any]) -> None:
        self.programs = Programs(_stretch, False, options) if compiled else None

    def bind(
        self,
        layers: Sequence[nn.Module],
        kinds: Sequence[Hashable],
        rope: Rope,
        mask: Tensor,
        slots: Sequence[Slot],
        ffns: Sequence[FFNWeights | None],
    ) -> Stretch:
        """For one answer. ``kinds``: of the layers, see `kind_of`."""
        program = None
        if self.programs is not None:
            tensors = (*rope, mask, *(t for slot in slots for t in slot), *(t for ffn in ffns for t in ffn or ()))
            program = self.programs.of(kinds, mask.device, tensors, tuple(ffn is None for ffn in ffns))
        return partial(program or _stretch, layers, rope, mask, slots, ffns)
