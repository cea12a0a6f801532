"""What a model's tensors hold in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def held_bytes(model: nn.Module) -> int:
    """Bytes of the storages that a model keeps alive: of its parameters, buffers and tensors in attributes, each
    storage once and whole, however little of it is used. Tensors on the meta device hold nothing."""
    tensors = [part for module in model.modules() for held in _tensors(vars(module)) for part in plain_tensors(held)]
    # A tensor in an opaque layout (oneDNN's) shows no storage.
    opaque = {id(tensor): tensor for tensor in tensors if tensor.layout is not torch.strided}
    storages = [t.untyped_storage() for t in tensors if t.layout is torch.strided and not t.is_meta]
    sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
    return sum(sizes.values()) + sum(t.numel() * t.element_size() for t in opaque.values())


def parameter_bytes(*modules: nn.Module) -> int:
    """Bytes of the elements of the modules' parameters, quantized ones at their true size, tied ones once."""
    return sum(part.nbytes for module in modules for p in module.parameters() for part in plain_tensors(p))


def plain_tensors(tensor: Tensor) -> Iterator[Tensor]:
    """A tensor, or the tensors that a wrapper (a quantized weight) is made of."""
    if type(tensor) in (Tensor, nn.Parameter) or not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    names, _ = tensor.__tensor_flatten__()
    for name in names:
        yield from plain_tensors(getattr(tensor, name))


def _tensors(value: Any) -> Iterator[Tensor]:
    """Tensors in nested containers; submodules are left to the caller."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
