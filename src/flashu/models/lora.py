"""Low-rank updates of linear layers, embedders of guidance scales, and models that share other weights with another.

LoRA: Hu et al. 2021, tensors named as in the peft library. Scale embedders: as the timestep's (Hyper-Bagel).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from flashu.errors import FlashUError
from flashu.models.packing import PackedLinear
from flashu.models.quantize import plain
from flashu.models.timestep import TimestepEmbedder


class LoRALinear(nn.Module):
    """base(x) + (alpha / rank) B A x. B starts at zero, so that nothing changes. ``base`` is shared, never written to
    and no part of the state dict."""

    def __init__(self, base: nn.Module, rank: int, alpha: float) -> None:
        super().__init__()
        weight = base.weight
        assert isinstance(weight, Tensor)
        out, inputs = weight.shape
        self._shared = (base,)
        self.scale = alpha / rank
        like = {"dtype": weight.dtype, "device": weight.device}
        self.lora_A = nn.Linear(inputs, rank, bias=False, **like)
        self.lora_B = nn.Linear(rank, out, bias=False, **like)
        nn.init.zeros_(self.lora_B.weight)

    @property
    def base(self) -> nn.Module:
        return self._shared[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.lora_B(self.lora_A(x)) * self.scale

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """One linear layer that computes the same, with weights of its own. `FlashUError` if the base is quantized."""
        base = self.base
        if not isinstance(base, nn.Linear) or isinstance(base, PackedLinear) or plain(base.weight) is not base.weight:
            raise FlashUError("an adapter is merged into plain weights: load the model without quantization or packing")
        update = self.lora_B.weight.float() @ self.lora_A.weight.float() * self.scale
        return linear_of((base.weight.float() + update).to(base.weight.dtype), base.bias)


def linear_of(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer over tensors, that are not copied."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.detach(), requires_grad=False)
    linear.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)  # type: ignore[assignment]
    return linear


class ScaleRange(NamedTuple):
    """Guidance scales that an adapter was trained on. ``default`` None: the checkpoint's own, clipped to it."""

    low: float
    high: float
    default: float | None = None

    def scale(self, name: str, asked: float | None, usual: float) -> float:
        """The scale of a request; `FlashUError` where one is asked for that lies outside."""
        if asked is not None and not self.low <= asked <= self.high:
            raise FlashUError(
                f"this adapter was trained on {name} guidance from {self.low:g} to {self.high:g}, not {asked:g}"
            )
        value = asked if asked is not None else usual if self.default is None else self.default
        return min(max(value, self.low), self.high)


class ScaleEmbedder(nn.Module):
    """Guidance scales [B, branches], in the order of ``ranges`` -> [B, width], added to the timestep's embedding. The
    last layers start at zero."""

    def __init__(self, width: int, ranges: Mapping[str, ScaleRange]) -> None:
        super().__init__()
        self.ranges = dict(ranges)
        self.of = nn.ModuleDict({name: TimestepEmbedder(width) for name in ranges})
        for embedder in self.of.values():
            last = embedder.mlp[-1]  # type: ignore[index]
            assert isinstance(last, nn.Linear)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, scales: Tensor) -> Tensor:
        parts = [embedder(scales[:, n]) for n, embedder in enumerate(self.of.values())]
        return torch.stack(parts).sum(0)


def with_modules(model: nn.Module, modules: Mapping[str, nn.Module]) -> nn.Module:
    """A model with some submodules replaced, by dotted name. It shares every other module with ``model``, which stays
    as it is."""
    here: dict[str, nn.Module] = {}
    below: dict[str, dict[str, nn.Module]] = {}
    for name, module in modules.items():
        first, _, rest = name.partition(".")
        if rest:
            below.setdefault(first, {})[rest] = module
        else:
            here[first] = module
    view = copy.copy(model)
    view._modules = dict(model._modules)
    view._modules |= here
    for first, inner in below.items():
        child = model._modules[first]
        assert child is not None
        view._modules[first] = with_modules(child, inner)
    return view


def linears(model: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    return {name: model.get_submodule(name) for name in names}
