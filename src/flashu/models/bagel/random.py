"""The released checkpoint's sizes with made-up weights: what a forward costs does not depend on their values."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from flashu.models.bagel.autoencoder import FluxAutoencoder
from flashu.models.bagel.config import BagelConfig
from flashu.models.bagel.load import fill_buffers
from flashu.models.bagel.model import Bagel
from flashu.models.bagel.official import official_defaults
from flashu.models.bagel.processor import Processor
from flashu.models.bagel.text import SpecialIds, Text, Thinking
from flashu.models.fit import counted, free_bytes
from flashu.scenes import tokenizer

NAMED = {"bagel-7b": 1024, "bagel-7b-512": 512}
"""Side in pixels of what is drawn."""
IDS = SpecialIds(151644, 151645, 151652, 151653, 151655, 151643)
TILE = 1_000_003  # an odd length, so that the rows of a matrix differ
SPARE = 8 * 2**30  # bytes beside the weights: contexts, the autoencoder


def named_model(
    name: str, dtype: torch.dtype, device: torch.device, around: torch.device | None = None
) -> tuple[Bagel, Processor]:
    """A model of the released size, built in ``dtype`` on ``device``, and a processor with the words of the scenes, its
    autoencoder on ``around`` (None: there, too). Where memory is short, all layers are one."""
    config = BagelConfig()
    defaults = replace(official_defaults(config), height=NAMED[name], width=NAMED[name])
    text = Text(tokenizer.build(), IDS, Thinking())
    model = random_model(config, dtype, device, one_layer=not fits(config, dtype, device))
    return model, Processor.usual(config, defaults, text, random_autoencoder(dtype, around or device))


def fits(config: BagelConfig, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether every layer can have weights of its own here."""
    free = free_bytes(device)
    return free is None or counted(lambda: Bagel(config)).total * dtype.itemsize + SPARE <= free


@torch.no_grad()
def random_model(config: BagelConfig, dtype: torch.dtype, device: torch.device, one_layer: bool = False) -> Bagel:
    """Weights whose activations stay of order one; nothing is held twice or in another dtype."""
    with torch.device("meta"):
        model = Bagel(config)
    if one_layer:
        model.language_model.model.layers = nn.ModuleList([model.layers[0]] * len(model.layers))
    _fill(model, dtype, device)
    fill_buffers(model, device)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def random_autoencoder(dtype: torch.dtype, device: torch.device) -> FluxAutoencoder:
    with torch.device("meta"):
        autoencoder = FluxAutoencoder()
    _fill(autoencoder, dtype, device)
    return autoencoder.eval().requires_grad_(False)


def _fill(module: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    tile = torch.empty(TILE, dtype=dtype, device=device).uniform_(-1, 1)
    made: dict[int, nn.Parameter] = {}
    for name, old in list(module.named_parameters(remove_duplicate=False)):
        owner, _, leaf = name.rpartition(".")
        if not old.is_meta:
            continue  # a layer that stands for others is filled already
        if id(old) not in made:
            made[id(old)] = nn.Parameter(_values(leaf, old, tile), requires_grad=False)
        setattr(module.get_submodule(owner), leaf, made[id(old)])


def _values(leaf: str, like: Tensor, tile: Tensor) -> Tensor:
    value = torch.empty(like.shape, dtype=tile.dtype, device=tile.device)
    if like.ndim == 1:
        return value.fill_(0.0 if leaf == "bias" else 1.0)
    for part in value.view(-1).split(TILE):
        part.copy_(tile[: len(part)])
    return value.mul_(math.sqrt(3 / like[0].numel()))
