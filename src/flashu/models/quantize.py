"""Narrower weights through torchao: the projections of the decoder and of the flow head, in eight bits."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flashu.errors import FlashUError
from flashu.models.memory import held_bytes
from flashu.models.packing import is_packed

log = logging.getLogger("flashu")

SCHEMES = {
    "int8": "Int8DynamicActivationInt8WeightConfig",
    "int8-weight": "Int8WeightOnlyConfig",
    "fp8": "Float8DynamicActivationFloat8WeightConfig",
    "fp8-weight": "Float8WeightOnlyConfig",
}
"""torchao's configuration by our name; without -weight, activations are quantized too, as they come."""
PROBE = 64
"""Side of the projection that is tried first."""


@dataclass(frozen=True)
class Quantized:
    """What was quantized: the modules by name, and the bytes that the model held before and after."""

    scheme: str
    names: tuple[str, ...]
    before: int
    after: int

    def __str__(self) -> str:
        kinds = Counter([part for part in name.split(".") if not part.isdigit()][-1] for name in self.names)
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        return (
            f"{self.scheme}: {len(self.names)} projections quantized ({counts}); weights {self.before / 1e6:,.1f} MB "
            f"-> {self.after / 1e6:,.1f} MB"
        )


@torch.no_grad()
def quantize(model: Any, scheme: str, *, lm_head: bool = False) -> Quantized:
    """Quantize a model's projections (`UnifiedModel.projections`) for good. Returns, and logs, what it was applied to.

    Embeddings, norms, what encodes pictures and, unless asked for, ``lm_head`` stay (where it shares its weights with
    the embeddings it takes a narrow copy). `FlashUError`, before anything is touched, for an unknown scheme, a model
    that is quantized, packed or offloaded, without torchao, or on a device that cannot compute so.
    """
    check_scheme(scheme)
    if model.quantization is not None:
        raise FlashUError(f"this model is quantized already ({model.quantization}): load it anew")
    if is_packed(model):
        raise FlashUError("packed weights cannot be quantized: load the model without pack")
    if any(parameter.is_meta for parameter in model.parameters()):
        raise FlashUError("an offloaded model cannot be quantized: load it without offload")
    if any(ffn.order is not None for ffn in model.ffns().values()):
        raise FlashUError("this model's FFN neurons are arranged in place: release() the engine that did it first")
    try_scheme(scheme, model.device, model.dtype)
    before = held_bytes(model)
    for module in narrowed(model, lm_head=lm_head):
        narrow(module, scheme)
    return finished(model, scheme, before)


def narrowed(model: Any, *, lm_head: bool = False) -> set[nn.Linear]:
    """The linear layers of a `UnifiedModel` that quantization applies to."""
    parts = (module for part in model.projections(lm_head=lm_head) for module in part.modules())
    return {module for module in parts if isinstance(module, nn.Linear)}


def finished(model: Any, scheme: str, before: int) -> Quantized:
    """Note that a model's projections are narrow now; ``before``: bytes that it held, or would have held."""
    names = tuple(n for n, m in model.named_modules() if isinstance(m, nn.Linear) and is_quantized(m.weight))
    model.quantization = scheme
    done = Quantized(scheme, names, before, held_bytes(model))
    log.info("%s", done)
    return done


def requantized(values: Tensor, scheme: str | None) -> Tensor:
    """A weight [out, in] under a scheme; itself under none."""
    if scheme is None:
        return values
    linear = nn.Linear(1, 1, bias=False, device="meta")
    linear.weight = nn.Parameter(values, requires_grad=False)
    return narrow(linear, scheme).weight.detach()


def plain(weight: Tensor) -> Tensor:
    """A weight as plain numbers."""
    return weight.dequantize() if is_quantized(weight) else weight


def is_quantized(weight: Tensor) -> bool:
    return type(weight) not in (Tensor, nn.Parameter)


def narrow(linear: nn.Linear, scheme: str) -> nn.Linear:
    """Quantize one layer's weight, for good."""
    try:
        from torchao import quantization
    except ImportError as error:
        raise FlashUError('quantization needs torchao: pip install ".[quant]" in a clone of flashu') from error
    config: Any = getattr(quantization, SCHEMES[scheme])(set_inductor_config=False)
    quantization.quantize_(linear, config)
    return linear


def check_scheme(scheme: str) -> None:
    if scheme not in SCHEMES:
        raise FlashUError(f"there is no quantization {scheme!r}: give {', '.join(SCHEMES)}")


def try_scheme(scheme: str, device: torch.device, dtype: torch.dtype) -> None:
    """`FlashUError` unless the device computes so."""
    probe = nn.Linear(PROBE, PROBE, bias=False, device=device, dtype=dtype)
    try:
        narrow(probe, scheme)(torch.ones(1, PROBE, device=device, dtype=dtype))
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        others = ", ".join(name for name in SCHEMES if name != scheme)
        raise FlashUError(f"{device} cannot compute in {scheme} ({reason}): try {others}") from error
