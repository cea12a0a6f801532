"""The released checkpoints' sizes with made-up weights: what a forward costs does not depend on their values."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from flashu.models.defaults import GenerationDefaults
from flashu.models.pictures import Autoencoder
from flashu.models.random_weights import fewer_layers, fill
from flashu.models.showo2.config import ShowO2Config
from flashu.models.showo2.load import fill_buffers
from flashu.models.showo2.model import ShowO2
from flashu.models.showo2.official import VOCABULARY, max_text, official_config, official_defaults
from flashu.models.showo2.processor import Processor
from flashu.models.showo2.text import ChatTemplate, SpecialIds, Text
from flashu.scenes import tokenizer

SMALL, LARGE = "Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen2.5-7B-Instruct"
# (language model, side of the grid of image tokens in config.json, pixels to draw, steps)
NAMED = {
    "showo2-1.5b": (SMALL, 27, 432, 50),
    "showo2-7b": (LARGE, 27, 432, 50),
    "showo2-1.5b-hq": (SMALL, 32, 1024, 20),
    "showo2-1.5b-hq-512": (SMALL, 32, 512, 20),
}
IDS = SpecialIds(151644, 151645, 151652, 151653, 151655, VOCABULARY - 4)


def named_config(name: str, layers: int | None = None) -> ShowO2Config:
    llm, side, _, _ = NAMED[name]
    config = official_config({"llm_model_path": llm, "image_latent_height": side, "image_latent_width": side})
    fewer = replace(config.llm, num_hidden_layers=fewer_layers(layers, config.llm.num_hidden_layers))
    return replace(config, llm=fewer)


def named_model(
    name: str,
    dtype: torch.dtype,
    device: torch.device,
    around: torch.device | None = None,
    layers: int | None = None,
) -> tuple[ShowO2, Processor]:
    """A model of a released checkpoint's size, built in ``dtype`` on ``device``, and a processor with the words of the
    scenes, its autoencoder on ``around`` (None: there, too). ``layers``: only so many of the decoder's; the semantic
    layers and the flow head then weigh more than they do."""
    config = named_config(name, layers)
    _, _, pixels, steps = NAMED[name]
    defaults = GenerationDefaults(steps, official_defaults(config).guidance, height=pixels, width=pixels)
    text = Text(tokenizer.build(), IDS, ChatTemplate(), max_text(config))
    return random_model(config, dtype, device), Processor(text, random_autoencoder(dtype, around or device), defaults)


def random_model(config: ShowO2Config, dtype: torch.dtype, device: torch.device) -> ShowO2:
    """Weights whose activations stay of order one; nothing is held twice or in another dtype."""
    with torch.device("meta"):
        model = ShowO2(config)
    fill(model, dtype, device)
    fill_buffers(model, device)
    return model.eval()


def random_autoencoder(dtype: torch.dtype, device: torch.device) -> Autoencoder | None:
    """Wan2.1's autoencoder as diffusers draws its weights; None where diffusers is not installed."""
    from flashu.models.showo2.vae import WanAutoencoder

    try:
        from diffusers import AutoencoderKLWan
    except ImportError:
        return None
    module: nn.Module = AutoencoderKLWan()  # type: ignore[assignment]
    # The plain `to`: diffusers warns that its own may lose precision, which no timing notices.
    return WanAutoencoder(nn.Module.to(module, device, dtype).requires_grad_(False))
