"""Weights in oneDNN's own layout, which bf16 products of few rows on a CPU read fastest (`pack=True`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashu.errors import FlashUError


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., in] times weight [out, in] transposed, plus bias [out]; ``weight`` may be `packed`."""
    if weight.is_mkldnn:
        # Private, as torch has no public product with a packed weight; `check_packing` tries it before any is packed.
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def packed(weight: Tensor) -> Tensor:
    """A bf16 weight [out, in] on the CPU in oneDNN's layout; ``to_dense()`` of it is the weight again, bit for bit."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), 1)


class PackedLinear(nn.Linear):
    """A linear layer whose weight is held packed, and only so: for good, and for inference alone."""

    def __init__(self, dense: nn.Linear) -> None:
        super().__init__(dense.in_features, dense.out_features, bias=False, device="meta")
        del self._parameters["weight"]
        self.bias = dense.bias
        self.blocks = packed(dense.weight)
        self.register_state_dict_pre_hook(_refuse)
        self.register_load_state_dict_pre_hook(_refuse)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight as it was, unpacked into new memory."""
        return self.blocks.to_dense()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight" and "blocks" in self.__dict__:
            raise FlashUError("a packed weight cannot be replaced: load the model without pack")
        super().__setattr__(name, value)

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad and torch.is_grad_enabled():  # the product would let none through, and not say so
            raise FlashUError("packed weights pass no gradients on: load the model without pack")
        return linear(x, self.blocks, self.bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedLinear:
        _refuse()
        return self

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"blocks": self.weight}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state | {"blocks": packed(state["blocks"])})


FOR_GOOD = "a model with packed weights is neither moved, cast, saved nor loaded into: load it without pack"


def _refuse(*_: Any) -> None:
    raise FlashUError(FOR_GOOD)


def is_packed(model: Any) -> bool:
    return any(isinstance(module, PackedLinear) for module in model.modules())


def pack(model: nn.Module) -> None:
    """Pack the linear layers of a model, for good. `FlashUError`, with nothing done, where it cannot be."""
    layers = {layer for layer in model.modules() if type(layer) is nn.Linear}
    for layer in layers:
        check_packing(layer.weight)
    for owner in list(model.modules()):
        for name, child in list(owner.named_children()):
            if child in layers:
                setattr(owner, name, PackedLinear(child))


def check_packing(weight: Tensor) -> None:
    """`FlashUError` unless a weight of this kind can be packed and gains by it."""
    if weight.is_meta:
        raise FlashUError("an offloaded model cannot be packed: load it without offload")
    if type(weight) is not nn.Parameter:
        raise FlashUError("quantized weights cannot be packed: leave pack out")
    if weight.device.type != "cpu":
        raise FlashUError(f"packing is for products on a CPU, not on {weight.device}: leave pack out")
    if weight.dtype is not torch.bfloat16:
        raise FlashUError(f"packing is for bfloat16 weights, not {weight.dtype}: give dtype=torch.bfloat16")
    if not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        raise FlashUError("this processor, or this build of torch, has no bfloat16 products by oneDNN: leave pack out")
