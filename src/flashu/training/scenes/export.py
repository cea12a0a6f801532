"""Writes the shipped files of the scenes model."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import torch

from flashu.models.showo2.autoencoders import PlainAutoencoder
from flashu.models.showo2.load import save_model
from flashu.models.showo2.model import ShowO2
from flashu.models.showo2.processor import GenerationDefaults, Processor
from flashu.models.showo2.text import ChatTemplate, SpecialIds, Text
from flashu.scenes.autoencoder import DOWNSAMPLE, LATENT_CHANNELS, Autoencoder
from flashu.scenes.captions import longest
from flashu.scenes.tokenizer import ANSWER, BOI, BOS, EOI, EOS, IMG_PAD, PAD, build
from flashu.scenes.world import SCENES, World

ASSETS = Path(__file__).parents[2] / "assets"
MAX_QUESTION = 16  # tokens


def processor(autoencoder: Autoencoder, world: World = SCENES) -> Processor:
    """Words, pictures and defaults of a world's model."""
    tokenizer = build(world)
    names = {"bos": BOS, "eos": EOS, "boi": BOI, "eoi": EOI, "img_pad": IMG_PAD, "pad": PAD}
    ids = SpecialIds(**{name: tokenizer.token_to_id(token) for name, token in names.items()})
    text = Text(tokenizer, ids, ChatTemplate(system="", user="", assistant=ANSWER), longest(world), MAX_QUESTION)
    defaults = GenerationDefaults(50, 2.0, 3.0, world.size, world.size, 4 * world.most + 4)
    return Processor(text, PlainAutoencoder(autoencoder, LATENT_CHANNELS, DOWNSAMPLE), defaults)


def export(model: ShowO2, autoencoder: Autoencoder, folder: Path, world: World = SCENES) -> None:
    """config.json, tokenizer.json, autoencoder.safetensors and bf16 model.safetensors, in the project's format."""
    save_model(deepcopy(model).cpu().to(torch.bfloat16), folder, processor(autoencoder, world))
