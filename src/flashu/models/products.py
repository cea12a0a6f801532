"""Products of activations and weights, x W^T + b, by the quickest kernel this machine has for them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WORTH_IT = 1 << 20
"""Multiply-adds from which oneDNN's fp32 product, slower to call than MKL's, is worth the call."""
# Of the two libraries that torch brings for x86, its own `linear` asks MKL in fp32, which knows few processors well.
_CHOICE = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
_here = threading.local()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., in] times weight [out, in] transposed, plus bias [out]; the same numbers as `F.linear` up to rounding."""
    if _CHOICE and _chosen(x, weight):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def _chosen(x: Tensor, weight: Tensor) -> bool:
    return (
        x.dtype is weight.dtype is torch.float32
        and x.numel() * len(weight) >= WORTH_IT
        and type(weight) in (Tensor, nn.Parameter)  # quantized ones know their own product
        and weight.device.type == "cpu"
        and weight.is_contiguous()
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()  # the compiler chooses for itself
        and not getattr(_here, "plain", False)
        and not torch.is_autocast_enabled("cpu")
    )


@contextmanager
def plain_products() -> Iterator[None]:
    """Inside, in this thread, every product is `F.linear`."""
    before, _here.plain = getattr(_here, "plain", False), True
    try:
        yield
    finally:
        _here.plain = before


class Linear(nn.Linear):
    """`nn.Linear` by way of `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)
