"""The released checkpoints' sizes with made-up weights: what a forward costs does not depend on their values."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from flashu.models.defaults import GenerationDefaults
from flashu.models.emu3.config import Emu3Config, TextConfig, VQConfig
from flashu.models.emu3.load import fill_buffers
from flashu.models.emu3.model import Emu3
from flashu.models.emu3.processor import Processor
from flashu.models.emu3.text import Template, Text
from flashu.models.emu3.vq import VQ
from flashu.models.random_weights import fewer_layers, fill, fits
from flashu.scenes import tokenizer

NAMED = {"emu3": 720, "emu3-512": 512}
"""Side in pixels of what is drawn."""
NEGATIVE = "a red circle above a blue square and a green triangle left of it " * 3
SPARE = 6 * 2**30  # bytes beside the weights: caches, the image tokenizer


def named_model(
    name: str,
    dtype: torch.dtype,
    device: torch.device,
    around: torch.device | None = None,
    layers: int | None = None,
) -> tuple[Emu3, Processor]:
    """A model of the released size, built in ``dtype`` on ``device``, and a processor with the words of the scenes and
    an image tokenizer on ``around`` (None: there, too). Where memory is short, all layers are one. ``layers``: only so
    many of the decoder's."""
    decoder, side = TextConfig(), NAMED[name] // VQConfig().factor
    config = Emu3Config(replace(decoder, num_hidden_layers=fewer_layers(layers, decoder.num_hidden_layers)))
    defaults = GenerationDefaults(side * side, 3.0, 1.0, NAMED[name], NAMED[name])
    template = Template(system="", assistant="", positive="", negative=NEGATIVE.strip())
    text = Text(tokenizer.build(), config.ids, template, max_text=256)
    model = random_model(config, dtype, device, one_layer=not fits(lambda: Emu3(config), dtype, device, SPARE))
    return model, Processor(text, random_vq(around or device), defaults)


def random_model(config: Emu3Config, dtype: torch.dtype, device: torch.device, one_layer: bool = False) -> Emu3:
    """Weights whose activations stay of order one; nothing is held twice or in another dtype."""
    with torch.device("meta"):
        model = Emu3(config)
    if one_layer:
        model.decoder.layers = nn.ModuleList([model.layers[0]] * len(model.layers))
    fill(model, dtype, device)
    fill_buffers(model, device)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def random_vq(device: torch.device, config: VQConfig | None = None) -> VQ:
    with torch.device("meta"):
        vq = VQ(config or VQConfig())
    fill(vq, torch.float32, device)
    for name, buffer in list(vq.named_buffers()):
        owner, _, leaf = name.rpartition(".")
        made = torch.full(buffer.shape, float(leaf == "running_var"), device=device)
        setattr(vq.get_submodule(owner), leaf, made.to(buffer.dtype))
    return vq.requires_grad_(False)
