"""The released checkpoints' sizes with made-up weights: what a forward costs does not depend on their values."""

from __future__ import annotations

from dataclasses import replace

import torch

from flashu.models.random_weights import fewer_layers, fill
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


def named_config(name: str, layers: int | None = None) -> ShowOConfig:
    llm = LLMConfig(58498)
    llm = replace(llm, num_hidden_layers=fewer_layers(layers, llm.num_hidden_layers))
    return ShowOConfig(llm, image_tokens=NAMED[name])


def named_model(
    name: str,
    dtype: torch.dtype,
    device: torch.device,
    around: torch.device | None = None,
    layers: int | None = None,
) -> tuple[ShowO, Processor]:
    """A model of a released checkpoint's size, built in ``dtype`` on ``device``, and a processor with the words of the
    scenes, its image tokenizer on ``around`` (None: there, too). ``layers``: only so many of the decoder's."""
    config = named_config(name, layers)
    ids = SpecialIds.behind(config.text_tokens, ENDS, ENDS)
    text = Text(tokenizer.build(), ids, ChatTemplate(), config.max_text)
    codec = MagVit().to(around or device, dtype).eval().requires_grad_(False)
    return random_model(config, dtype, device), Processor(text, codec, official_defaults(config))


def random_model(config: ShowOConfig, dtype: torch.dtype, device: torch.device) -> ShowO:
    """Weights whose activations stay of order one; nothing is held twice or in another dtype."""
    with torch.device("meta"):
        model = ShowO(config)
    fill(model, dtype, device)
    model.showo.model.rotary_emb = rotary_of(config).to(device)
    return model.eval()
