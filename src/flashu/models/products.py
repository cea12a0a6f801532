"""Products of activations and weights, x W^T + b, by the quickest kernel this machine has for them.

Two ways around torch's own on a CPU, both oneDNN's: its fp32 product, and its bf16 product of weights `Packed` for it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashu.errors import FlashUError

WORTH_IT = 1 << 20
"""Multiply-adds from which oneDNN's fp32 product, slower to call than MKL's, is worth the call."""
# Of the two libraries that torch brings for x86, its own `linear` asks MKL in fp32, which knows few processors well.
_CHOICE = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
_here = threading.local()


class Packed(NamedTuple):
    """A weight [out, in], and a copy of it in oneDNN's layout, which a product reads as fast as the memory gives it."""

    weight: Tensor
    blocks: Tensor


Weight: TypeAlias = Tensor | Packed


def linear(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """x [..., in] times weight [out, in] transposed, plus bias [out]; the same numbers as `F.linear` up to rounding."""
    if isinstance(weight, Packed):
        if x.dtype is weight.weight.dtype and _here_and_now():
            return torch.ops.mkldnn._linear_pointwise(x, weight.blocks, bias, "none", [], "")
        weight = weight.weight
    elif _CHOICE and _worth_it(x, weight) and _here_and_now():
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def _worth_it(x: Tensor, weight: Tensor) -> bool:
    return (
        x.dtype is weight.dtype is torch.float32
        and x.numel() * len(weight) >= WORTH_IT
        and type(weight) in (Tensor, nn.Parameter)  # quantized ones know their own product
        and weight.device.type == "cpu"
        and weight.is_contiguous()
    )


def _here_and_now() -> bool:
    return not (
        torch.is_grad_enabled()
        or torch.compiler.is_compiling()  # the compiler chooses for itself
        or torch.is_autocast_enabled("cpu")
        or getattr(_here, "plain", False)
    )


@contextmanager
def plain_products() -> Iterator[None]:
    """Inside, in this thread, every product is `F.linear`."""
    before, _here.plain = getattr(_here, "plain", False), True
    try:
        yield
    finally:
        _here.plain = before


def pack(weight: Tensor) -> Packed:
    """A bf16 weight [out, in] on the CPU with its packed copy; see `check_packing`."""
    weight = weight.detach()
    return Packed(weight, torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 1))


def unpacked(weight: Weight) -> Tensor:
    """The weight as it was."""
    return weight.weight if isinstance(weight, Packed) else weight


def check_packing(dtype: torch.dtype, device: torch.device) -> None:
    """`FlashUError` unless weights of this kind can be packed and gain by it."""
    if device.type != "cpu":
        raise FlashUError(f"packing is for products on a CPU, not on {device}: leave pack out")
    if dtype is not torch.bfloat16:
        raise FlashUError(f"packing is for bfloat16 weights, not {dtype}: give dtype=torch.bfloat16, or leave pack out")
    if not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        raise FlashUError("this processor, or this build of torch, has no bfloat16 products by oneDNN: leave pack out")


class Snapshot(NamedTuple):
    """Something made from weights, and what tells whether they still are what it was made from."""

    made: Packed
    of: tuple[tuple[Tensor, int, int], ...]

    @classmethod
    def take(cls, made: Packed, weights: list[Tensor]) -> Snapshot:
        return cls(made, tuple((weight, *_state(weight)) for weight in weights))

    def holds(self, *weights: Tensor) -> bool:
        """Whether ``weights`` are the very ones, with the very values."""
        return all(
            now is then and (version, place) == _state(now)
            for now, (then, version, place) in zip(weights, self.of, strict=True)
        )


def _state(weight: Tensor) -> tuple[int, int]:
    return -1 if weight.is_inference() else weight._version, weight.data_ptr()


class Linear(nn.Linear):
    """`nn.Linear` by way of `linear`. Packed, it means its weight all the same: what is put in its place, or written
    into it, counts."""

    _packed: Snapshot | None = None

    def pack(self) -> None:
        self._packed = Snapshot.take(pack(self.weight), [self.weight])

    def best(self) -> Weight:
        """The weight, packed if it still is what was packed."""
        packed = self._packed
        if packed is None or not _here_and_now() or not packed.holds(self.weight):
            return self.weight
        return packed.made

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.best(), self.bias)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_packed"}
