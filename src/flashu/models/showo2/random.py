"""The released checkpoints' sizes with made-up weights: what a forward costs does not depend on their values."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from flashu.models.defaults import GenerationDefaults
from flashu.models.pictures import Autoencoder
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
TILE = 1_000_003  # an odd length, so that the rows of a matrix differ


def named_config(name: str) -> ShowO2Config:
    llm, side, _, _ = NAMED[name]
    return official_config({"llm_model_path": llm, "image_latent_height": side, "image_latent_width": side})


def named_model(
    name: str, dtype: torch.dtype, device: torch.device, around: torch.device | None = None
) -> tuple[ShowO2, Processor]:
    """A model of a released checkpoint's size, built in ``dtype`` on ``device``, and a processor with the words of the
    scenes, its autoencoder on ``around`` (None: there, too)."""
    config = named_config(name)
    _, _, pixels, steps = NAMED[name]
    defaults = GenerationDefaults(steps, official_defaults(config).guidance, height=pixels, width=pixels)
    text = Text(tokenizer.build(), IDS, ChatTemplate(), max_text(config))
    return random_model(config, dtype, device), Processor(text, random_autoencoder(dtype, around or device), defaults)


@torch.no_grad()
def random_model(config: ShowO2Config, dtype: torch.dtype, device: torch.device) -> ShowO2:
    """Weights whose activations stay of order one; nothing is held twice or in another dtype."""
    with torch.device("meta"):
        model = ShowO2(config)
    tile = torch.empty(TILE, dtype=dtype, device=device).uniform_(-1, 1)
    made: dict[int, nn.Parameter] = {}
    for name, old in list(model.named_parameters(remove_duplicate=False)):
        if id(old) not in made:
            made[id(old)] = nn.Parameter(_values(name, old, tile), requires_grad=False)
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, made[id(old)])
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


def _values(name: str, like: Tensor, tile: Tensor) -> Tensor:
    value = torch.empty(like.shape, dtype=tile.dtype, device=tile.device)
    if like.ndim == 1:
        return value.fill_(0.0 if name.endswith("bias") else 1.0)
    for part in value.view(-1).split(TILE):
        part.copy_(tile[: len(part)])
    return value.mul_(math.sqrt(3 / like[0].numel()))
