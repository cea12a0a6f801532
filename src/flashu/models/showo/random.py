"""The released checkpoints' sizes with made-up weights: what a forward costs does not depend on their values."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from flashu.models.showo.codecs import MagVit
from flashu.models.showo.config import LLMConfig, ShowOConfig
from flashu.models.showo.load import rotary_of
from flashu.models.showo.model import ShowO
from flashu.models.showo.official import official_defaults
from flashu.models.showo.processor import Processor
from flashu.models.showo.text import ChatTemplate, SpecialIds, Text
from flashu.scenes import tokenizer

NAMED = {"showo-256": 256, "showo-512": 1024}
"""Codes of an image, by name."""
ENDS = 50256
TILE = 1_000_003  # an odd length, so that the rows of a matrix differ


def named_config(name: str) -> ShowOConfig:
    return ShowOConfig(LLMConfig(58498), image_tokens=NAMED[name])


def named_model(
    name: str, dtype: torch.dtype, device: torch.device, around: torch.device | None = None
) -> tuple[ShowO, Processor]:
    """A model of a released checkpoint's size, built in ``dtype`` on ``device``, and a processor with the words of the
    scenes, its image tokenizer on ``around`` (None: there, too)."""
    config = named_config(name)
    ids = SpecialIds.behind(config.text_tokens, ENDS, ENDS)
    text = Text(tokenizer.build(), ids, ChatTemplate(), config.max_text)
    codec = MagVit().to(around or device, dtype).eval().requires_grad_(False)
    return random_model(config, dtype, device), Processor(text, codec, official_defaults(config))


@torch.no_grad()
def random_model(config: ShowOConfig, dtype: torch.dtype, device: torch.device) -> ShowO:
    """Weights whose activations stay of order one; nothing is held twice or in another dtype."""
    with torch.device("meta"):
        model = ShowO(config)
    tile = torch.empty(TILE, dtype=dtype, device=device).uniform_(-1, 1)
    for name, old in list(model.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, nn.Parameter(_values(name, old, tile), requires_grad=False))
    model.showo.model.rotary_emb = rotary_of(config).to(device)
    return model.eval()


def _values(name: str, like: Tensor, tile: Tensor) -> Tensor:
    value = torch.empty(like.shape, dtype=tile.dtype, device=tile.device)
    if like.ndim == 1:
        return value.fill_(0.0 if name.endswith("bias") else 1.0)
    for part in value.view(-1).split(TILE):
        part.copy_(tile[: len(part)])
    return value.mul_(math.sqrt(3 / like[0].numel()))
