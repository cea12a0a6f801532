"""The released checkpoints' sizes with made-up weights: what a forward costs does not depend on their values."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from flashu.models.janus.config import PRO_1B, PRO_7B, JanusConfig, VQConfig
from flashu.models.janus.load import defaults_of, rotary
from flashu.models.janus.model import Janus
from flashu.models.janus.processor import Processor
from flashu.models.janus.text import Text
from flashu.models.janus.vq import VQ
from flashu.models.random_weights import fewer_layers, fill, fits
from flashu.scenes import tokenizer

NAMED = {"janus-pro-1b": PRO_1B, "janus-pro-7b": PRO_7B}
SPARE = 4 * 2**30  # bytes beside the weights: caches, the decoder of codes


def named_model(
    name: str,
    dtype: torch.dtype,
    device: torch.device,
    around: torch.device | None = None,
    layers: int | None = None,
) -> tuple[Janus, Processor]:
    """A model of the released size, built in ``dtype`` on ``device``, and a processor with the words of the scenes and
    a decoder of codes on ``around`` (None: there, too). Where memory is short, all layers are one. ``layers``: only so
    many of the decoder's."""
    whole = NAMED[name]
    count = fewer_layers(layers, whole.text.num_hidden_layers)
    config = replace(whole, text=replace(whole.text, num_hidden_layers=count))
    model = random_model(config, dtype, device, one_layer=not fits(lambda: Janus(config), dtype, device, SPARE))
    vq = random_vq(around or device, config.vq)
    return model, Processor(Text(tokenizer.build(), config.ids), vq, defaults_of(config), config.vision.image_size)


def random_model(config: JanusConfig, dtype: torch.dtype, device: torch.device, one_layer: bool = False) -> Janus:
    """Weights whose activations stay of order one; nothing is held twice or in another dtype."""
    with torch.device("meta"):
        model = Janus(config)
    if one_layer:
        model.decoder.layers = nn.ModuleList([model.layers[0]] * len(model.layers))
    fill(model, dtype, device)
    model.decoder.rotary_emb.inv_freq = rotary(config, device)
    return model.eval().requires_grad_(False)


def random_vq(device: torch.device, config: VQConfig) -> VQ:
    with torch.device("meta"):
        vq = VQ(config)
    fill(vq, torch.float32, device)
    return vq.requires_grad_(False)
