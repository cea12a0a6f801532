"""The released checkpoint's sizes with made-up weights: what a forward costs does not depend on their values."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from flashu.models.bagel.autoencoder import FluxAutoencoder
from flashu.models.bagel.config import BagelConfig, LLMConfig
from flashu.models.bagel.load import fill_buffers
from flashu.models.bagel.model import Bagel
from flashu.models.bagel.official import official_defaults
from flashu.models.bagel.processor import Processor
from flashu.models.bagel.text import SpecialIds, Text, Thinking
from flashu.models.random_weights import fewer_layers, fill, fits
from flashu.scenes import tokenizer

NAMED = {"bagel-7b": 1024, "bagel-7b-512": 512}
"""Side in pixels of what is drawn."""
IDS = SpecialIds(151644, 151645, 151652, 151653, 151655, 151643)
SPARE = 8 * 2**30  # bytes beside the weights: contexts, the autoencoder


def named_model(
    name: str,
    dtype: torch.dtype,
    device: torch.device,
    around: torch.device | None = None,
    layers: int | None = None,
) -> tuple[Bagel, Processor]:
    """A model of the released size, built in ``dtype`` on ``device``, and a processor with the words of the scenes, its
    autoencoder on ``around`` (None: there, too). Where memory is short, all layers are one. ``layers``: only so many of
    the decoder's."""
    llm = LLMConfig()
    config = BagelConfig(replace(llm, num_hidden_layers=fewer_layers(layers, llm.num_hidden_layers)))
    defaults = replace(official_defaults(config), height=NAMED[name], width=NAMED[name])
    text = Text(tokenizer.build(), IDS, Thinking())
    model = random_model(config, dtype, device, one_layer=not fits(lambda: Bagel(config), dtype, device, SPARE))
    return model, Processor.usual(config, defaults, text, random_autoencoder(dtype, around or device))


def random_model(config: BagelConfig, dtype: torch.dtype, device: torch.device, one_layer: bool = False) -> Bagel:
    """Weights whose activations stay of order one; nothing is held twice or in another dtype."""
    with torch.device("meta"):
        model = Bagel(config)
    if one_layer:
        model.language_model.model.layers = nn.ModuleList([model.layers[0]] * len(model.layers))
    fill(model, dtype, device)
    fill_buffers(model, device)
    return model.eval().requires_grad_(False)


def random_autoencoder(dtype: torch.dtype, device: torch.device) -> FluxAutoencoder:
    with torch.device("meta"):
        autoencoder = FluxAutoencoder()
    fill(autoencoder, dtype, device)
    return autoencoder.eval().requires_grad_(False)
