"""The tiny model in an engine: texts are lists of ids, pictures the recorded tensors."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from flashu.inference.engine import Engine
from flashu.models.bagel.processor import Processor
from flashu.models.bagel.text import SpecialIds, Text, Thinking
from flashu.models.bagel.vision import unpatched
from flashu.models.defaults import GenerationDefaults
from tests.models.bagel.golden.recorded import about, config, ids, model, special, tensors


class Ids(Text):
    """Texts like "5,7,9"."""

    def encode(self, text: str) -> list[int]:
        return [int(one) for one in text.split(",")]

    def decode(self, ids) -> str:
        return written(ids)


class Encoded:
    """Encodes as the recorded latents."""

    latent_channels, factor = 4, 8

    def __init__(self, latents: Tensor) -> None:
        self.latents = latents

    def encode(self, pixels: Tensor, sample: bool = False, generator=None) -> Tensor:
        return self.latents

    def decode(self, latents: Tensor) -> Tensor:
        return torch.zeros(len(latents), 3, *(8 * side for side in latents.shape[-2:]))


class Recorded(Processor):
    """Shows the recorded pixels, whatever the picture."""

    shown: Tensor

    def pixels(self, image):
        height, width = about()["common"]["edit_hw_pixels"]
        return torch.zeros(3, height, width), self.shown


def written(ids) -> str:
    return ",".join(map(str, ids))


def said(name: str) -> str:
    return written(ids(name))


def processor(shown: str = "a.edit.vit_image", eos: int | None = None) -> Recorded:
    common, asked = about()["common"], about()["common"]["seeds_and_hparams"]
    marks = (special(name) for name in ("bos_token_id", "eos_token_id", "start_of_image", "end_of_image"))
    specials = SpecialIds(*marks, 254, 255)
    if eos is not None:
        specials = replace(specials, eos=eos)
    prompt = said("think_system_prompt")
    height, width = common["t2i_hw_pixels"]
    defaults = GenerationDefaults(asked["num_timesteps"] - 1, 4.0, asked["timestep_shift"], height, width, 12)
    text = Ids(None, specials, Thinking(prompt, prompt))  # type: ignore[arg-type]
    made = Recorded(text, Encoded(tensors()["a.edit.vae_latent"]), defaults)
    made.shown = tensors()[shown]
    return made


def engine(**options) -> Engine:
    return Engine(model(), processor(**options))


def latents(tokens: Tensor, height: int, width: int) -> Tensor:
    """Recorded latent tokens [N, p * p * z] as [z, h, w]."""
    p = config().latent_patch_size
    return unpatched(tokens[None], p, height // config().cell, width // config().cell)[0]
