"""Functions of modules, compiled (fullgraph); they look at the modules when these are bound, not at every call."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import wraps
from types import FunctionType
from typing import Any

import torch
import torch.fx.experimental._config as fx_config
from torch import Tensor, nn

from flashu.models.layers import Joining
from flashu.models.products import Packed, Weight

MOST = 32
"""Programs compiled of one function before what is new is left to others."""
OWN = (Joining.__module__, Packed.__module__)
"""Where the modules are from that may be bound, torch's own linear layers aside."""
EVERY_MODULE_HAS = frozenset(vars(nn.Module()))


class _Tracing(threading.local):
    """Sizes that happen to agree (two rows, two heads) must not be taken for one size: each would cost a graph."""

    def __init__(self) -> None:
        self.sizes_apart = fx_config.patch(use_duck_shape=False)  # type: ignore[attr-defined]


_tracing = _Tracing()


def program(function: Callable[..., Any], dynamic: bool, options: dict[str, Any]) -> Callable[..., Any]:
    """``function`` by `torch.compile`, checking what it takes for granted at every call; ``dynamic``: of any sizes."""
    compiled: Callable[..., Any] = torch.compile(function, fullgraph=True, dynamic=dynamic, **options)
    if not dynamic:
        return compiled

    @wraps(function)
    def call(*inputs: Any) -> Any:
        with _tracing.sizes_apart:
            return compiled(*inputs)

    return call


class Programs:
    """``function`` compiled once for every kind of modules, and trusting them to be of it: on a small model, checking
    them costs as much as compiling saves."""

    def __init__(self, function: Callable[..., Any], dynamic: bool, options: dict[str, Any]) -> None:
        self.function, self.dynamic, self.options = function, dynamic, options
        self._made: dict[Hashable, Callable[..., Any]] = {}

    def __len__(self) -> int:
        return len(self._made)

    def of(
        self, kinds: Sequence[Hashable], device: torch.device, tensors: Iterable[Weight] = (), *settings: Hashable
    ) -> Callable[..., Any] | None:
        """The program for modules of these kinds (see `kind_of`) on ``device``, and for tensors and settings like
        these. None if there cannot be one, or are `MOST` others."""
        shapes = [shape(t) for t in tensors]
        if None in kinds or None in shapes:
            return None
        key = (*settings, *kinds, *shapes)
        if key not in self._made:
            if len(self._made) >= MOST:
                return None
            self._made[key] = self._compile(device)
        return self._made[key]

    def _compile(self, device: torch.device) -> Callable[..., Any]:
        options = dict(self.options)
        inner = options.pop("options", {}) | {"guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe}
        if not self.dynamic and device.type == "cpu" and options.get("backend", "inductor") == "inductor":
            inner["cpp_wrapper"] = True
        # The compiler files what it made, and counts it, by code object: with one each, no two can be mistaken.
        code, scope = self.function.__code__.replace(), self.function.__globals__
        alone: Any = FunctionType(code, scope, self.function.__name__)
        return program(alone, self.dynamic, options | {"options": inner})


@torch.no_grad()
def kind_of(module: nn.Module) -> Hashable:
    """What programs of this module and the modules in it have in common, for as long as nothing is put in place of, or
    around, a part of them. None if there cannot be one."""
    parts = tuple(map(likeness, module.modules()))
    return None if None in parts else parts


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
