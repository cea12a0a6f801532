"""Small models that every test can afford."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.nn import functional as F

import flashu
from flashu.models.defaults import GenerationDefaults
from flashu.models.showo2.config import HeadConfig, LLMConfig, ShowO2Config, VisionConfig
from flashu.models.showo2.processor import Processor
from flashu.models.showo2.text import ChatTemplate, SpecialIds, Text

# Tiny tensors are slower on several threads, far slower when other work is on the cores.
torch.set_num_threads(1)

GOLDEN = Path(__file__).parent / "models" / "showo2" / "golden"
TINY = ShowO2Config(
    llm=LLMConfig(256, 64, 96, 6, 4, 2, tie_word_embeddings=True),
    vision=VisionConfig(32, 48, 3, 4, 16),
    head=HeadConfig(48, 56, 3, 6, 2, 8),
    image_latent_dim=4,
    image_latent_height=4,
    image_latent_width=4,
)
IDS = SpecialIds(bos=250, eos=251, boi=252, eoi=253, img_pad=254, pad=255)


class Pixels:
    """An autoencoder without weights: average colour of 8x8 pixels plus their brightness, and back by repetition."""

    latent_channels = 4
    factor = 8

    def encode(self, pixels: Tensor, sample: bool = False, generator: torch.Generator | None = None) -> Tensor:
        small = F.avg_pool2d(pixels, 8)
        return torch.cat((small, small.mean(1, keepdim=True)), dim=1)

    def decode(self, latents: Tensor) -> Tensor:
        return F.interpolate(latents[:, :3], scale_factor=8).clamp(-1, 1)


def words() -> Tokenizer:
    """Words w0..w249 and whatever else is special."""
    vocabulary = {f"w{n}": n for n in range(250)} | {name: getattr(IDS, name) for name in IDS.__dataclass_fields__}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


@pytest.fixture(scope="session")
def goldens() -> dict[str, Tensor]:
    return load_file(str(GOLDEN / "showo2_tiny_golden.safetensors"))


@pytest.fixture(scope="session")
def golden_facts() -> dict[str, Any]:
    return json.loads((GOLDEN / "showo2_tiny_golden.json").read_text())


def tiny_model() -> flashu.ShowO2:
    """The tiny model of the goldens, with its weights, a word tokenizer and a weightless autoencoder."""
    model = flashu.ShowO2(TINY).eval().requires_grad_(False)
    model.load_state_dict(load_file(str(GOLDEN / "showo2_tiny.safetensors")))
    text = Text(words(), IDS, ChatTemplate("w221 w38", "w209 w26", "w235 w177"), max_text=19)
    model.processor = Processor(text, Pixels(), GenerationDefaults(12, 5.0, 3.0, 64, 64, max_new_tokens=8))
    return model


@pytest.fixture
def tiny() -> flashu.ShowO2:
    return tiny_model()


@pytest.fixture(scope="session")
def tiny_engine() -> flashu.Engine:
    model = tiny_model()
    assert model.processor is not None
    return flashu.Engine(model, model.processor)
