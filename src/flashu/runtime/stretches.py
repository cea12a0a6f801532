"""Stretches: neighbouring layers that take one token per row over a static cache, as one call, eager or compiled.

What a token costs on a small model is the calling, not the arithmetic, so a compiled stretch looks at its modules once,
when it is bound, and not at every call.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from flashu.models.layers import FFNWeights, Joining, Rope, Slot
from flashu.models.products import Packed, Weight

LENGTH = 4
"""Layers in a stretch. Each is code to compile; each stretch is a call to pay for."""
MOST = 32
"""Stretches compiled before what is new stays eager."""
OWN = (Joining.__module__, Packed.__module__)
"""Where the modules are from that a stretch may be compiled of, torch's own linear layers aside."""
EVERY_MODULE_HAS = frozenset(vars(nn.Module()))
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
    """Binds layers to what they read. Compiled, every kind of stretch is a program of its own, of fixed shapes."""

    def __init__(self, compiled: bool, options: dict[str, Any]) -> None:
        self.compiled, self.options = compiled, options
        self._made: dict[Hashable, Callable[..., Tensor]] = {}

    def bind(
        self,
        layers: Sequence[nn.Module],
        rope: Rope,
        mask: Tensor,
        slots: Sequence[Slot],
        ffns: Sequence[FFNWeights | None],
    ) -> Stretch:
        """For one answer: the layers are taken for what they now are."""
        run: Callable[..., Tensor] = _stretch
        if self.compiled:
            tensors = [*rope, mask, *(t for slot in slots for t in slot), *(t for ffn in ffns for t in ffn or ())]
            parts = [likeness(module) for layer in layers for module in layer.modules()] + [shape(t) for t in tensors]
            if None not in parts:
                run = self._program((tuple(ffn is None for ffn in ffns), *parts), mask.device)
        return partial(run, layers, rope, mask, slots, ffns)

    def _program(self, kind: Hashable, device: torch.device) -> Callable[..., Tensor]:
        """The program of stretches of one kind, compiled when it is first called; eager once there are `MOST`."""
        if kind not in self._made:
            if len(self._made) >= MOST:
                return _stretch
            self._made[kind] = self._compile(device)
        return self._made[kind]

    def _compile(self, device: torch.device) -> Callable[..., Tensor]:
        options = dict(self.options)
        inner = options.pop("options", {}) | {"guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe}
        if device.type == "cpu" and options.get("backend", "inductor") == "inductor":
            inner["cpp_wrapper"] = True
        # The compiler files what it made, and counts it, by code object: with one each, no two can be mistaken.
        alone: Any = FunctionType(_stretch.__code__.replace(), _stretch.__globals__, _stretch.__name__)
        compiled: Callable[..., Tensor] = torch.compile(alone, fullgraph=True, dynamic=False, options=inner, **options)
        return compiled


def likeness(module: nn.Module) -> Hashable:
    """What a compiled program takes for granted of a module, the values of its weights aside. None if it cannot: the
    module is another's (an adapter), hooked, quantized, packed for eager products, or its joint weights are not the
    current ones."""
    if type(module) is not nn.Linear and type(module).__module__ not in OWN:
        return None
    own = vars(module)
    if "forward" in own or module._forward_hooks or module._forward_pre_hooks or own.get("_packed") is not None:
        return None
    joined = False
    if isinstance(module, Joining):
        joined = module._joint is not None
        if joined and module.joint() is None:
            return None
    held = [shape(t) for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]
    if None in held:
        return None
    settings = tuple(
        (name, value)
        for name, value in own.items()
        if name not in EVERY_MODULE_HAS and type(value) in (bool, int, float, str)
    )
    children = tuple(module._modules)
    return type(module), joined, settings, tuple(held), children


def shape(tensor: Weight) -> Hashable:
    """All of a plain tensor but its numbers; None for one of a kind of its own."""
    if isinstance(tensor, Packed) or type(tensor) not in (Tensor, nn.Parameter):
        return None
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device
