"""Made-up weights for models of released sizes: what a forward costs does not depend on their values."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from flashu.errors import FlashUError
from flashu.models.fit import counted, free_bytes

TILE = 1_000_003  # an odd length, so that the rows of a matrix differ


@torch.no_grad()
def fill(module: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Parameters for those of ``module`` that are on meta, whose activations stay of order one: uniform matrices, ones
    for scales, zeros for biases. What is shared stays shared; nothing is held twice or in another dtype."""
    tile = torch.empty(TILE, dtype=dtype, device=device).uniform_(-1, 1)
    made: dict[int, nn.Parameter] = {}
    for name, old in list(module.named_parameters(remove_duplicate=False)):
        owner, _, leaf = name.rpartition(".")
        if not old.is_meta:
            continue  # of a layer that stands for others, filled already
        if id(old) not in made:
            made[id(old)] = nn.Parameter(_values(leaf, old, tile), requires_grad=False)
        setattr(module.get_submodule(owner), leaf, made[id(old)])


def fits(build: Callable[[], nn.Module], dtype: torch.dtype, device: torch.device, spare: int) -> bool:
    """Whether the weights of what ``build`` makes, and ``spare`` bytes, can be held on ``device``."""
    free = free_bytes(device)
    return free is None or counted(build).total * dtype.itemsize + spare <= free


def fewer_layers(layers: int | None, all_layers: int) -> int:
    """How many layers a benchmark's model has: ``layers`` (None: all of them); `FlashUError` for more."""
    if layers is not None and layers > all_layers:
        raise FlashUError(f"the model has {all_layers} layers: give at most that many")
    return layers or all_layers


def _values(leaf: str, like: Tensor, tile: Tensor) -> Tensor:
    value = torch.empty(like.shape, dtype=tile.dtype, device=tile.device)
    if like.ndim == 1:
        return value.fill_(0.0 if leaf.endswith("bias") else 1.0)
    for part in value.view(-1).split(TILE):
        part.copy_(tile[: len(part)])
    return value.mul_(math.sqrt(3 / like[0].numel()))
