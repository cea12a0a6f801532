"""What a family's class does with a checkpoint besides computing: quantized, packed, saved, pushed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flashu.errors import FlashUError
from flashu.models.hub import Pushed
from flashu.models.offload import offload as offload_to
from flashu.models.packing import FOR_GOOD, is_packed, pack
from flashu.models.quantize import Quantized, quantize
from flashu.models.weights import checkpoint_hash


class Pretrained(Pushed):
    """Mixed into a model class. ``processor``: what surrounds the weights; ``calibration``: if it came with one."""

    processor: Any = None
    calibration: Any = None
    fingerprint: str | None = None
    """Hash of the checkpoint, noted before its weights were quantized or packed."""
    quantization: str | None

    def quantize(self, scheme: str, *, lm_head: bool = False) -> Quantized:
        """Quantize the projections, and ``lm_head`` if asked, with torchao: "int8", "fp8" (weights, and activations as
        they come), "int8-weight", "fp8-weight". Returns, and logs, what it was applied to. For good; `FlashUError`,
        before anything is touched, where it cannot be."""
        fingerprint = checkpoint_hash(self)
        done = quantize(self, scheme, lm_head=lm_head)
        self.fingerprint = fingerprint
        return done

    def pack(self) -> None:
        """Hold every projection's weights in the layout in which a CPU's bf16 products are quickest. For good: a packed
        model is neither saved, moved, cast nor trained. `FlashUError`, with nothing done, where nothing is gained."""
        if any(ffn.order is not None for ffn in self.ffns().values()):  # type: ignore[attr-defined]
            raise FlashUError("this model's FFN neurons are arranged in place: release() the engine that did it first")
        fingerprint = checkpoint_hash(self)
        pack(self)  # type: ignore[arg-type]
        self.fingerprint = fingerprint

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        if is_packed(self):
            raise FlashUError(FOR_GOOD)  # before any part has been moved or cast
        return super()._apply(fn, recurse)  # type: ignore[misc]

    def placed(self, device: torch.device | str | None, offload: bool, quantized: str | None, packed: bool) -> None:
        """Apply the options of ``from_pretrained`` that come after loading."""
        if quantized is not None and self.quantization is None:
            self.quantize(quantized)
        if packed:
            self.pack()
        if offload:
            offload_to(self, device or "cpu")


def check_placement(offload: bool, quantized: str | None, packed: bool) -> None:
    """`FlashUError` for options that exclude each other."""
    if offload and quantized is not None:
        raise FlashUError("accelerate cannot move torchao's tensors: give offload or quantize, not both")
    if packed and (offload or quantized is not None):
        raise FlashUError("packed weights are neither offloaded nor quantized: leave pack out, or the other")
