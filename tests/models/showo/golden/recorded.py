"""The recorded runs of the original Show-o class, and the tiny model that they are of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from flashu.models.defaults import GenerationDefaults
from flashu.models.showo import layout, reference
from flashu.models.showo.config import LLMConfig, ShowOConfig
from flashu.models.showo.processor import Processor
from flashu.models.showo.public import ShowO
from flashu.models.showo.text import ChatTemplate, SpecialIds, Text

HERE = Path(__file__).parent
NAME = "showo1_tiny"
TOLERANCE = 3e-5
"""Largest difference of logits, hidden states and losses allowed."""
ABOUT: dict[str, Any] = json.loads((HERE / f"{NAME}_golden.json").read_text())["common"]
SIZES: dict[str, Any] = json.loads((HERE / f"{NAME}.json").read_text())
IDS = {name.strip("<|>"): value for name, value in SIZES["special_ids"].items()}


def goldens() -> dict[str, Tensor]:
    return load_file(HERE / f"{NAME}_golden.safetensors")


def tiny_config(**changes: Any) -> ShowOConfig:
    llm = LLMConfig(**{name: SIZES["phi_config"][name] for name in LLMConfig.__dataclass_fields__})
    names = ("llm_vocab_size", "num_new_special_tokens", "codebook_size", "num_vq_tokens", "max_seq_length_text")
    return ShowOConfig(llm, *(SIZES[name] for name in names), **changes)


def tiny_model(**changes: Any) -> ShowO:
    model = ShowO(tiny_config(**changes))
    model.load_state_dict(load_file(HERE / f"{NAME}.safetensors"))
    return model.eval().requires_grad_(False)


def close(ours: Tensor, golden: Tensor, tolerance: float = TOLERANCE) -> None:
    assert ours.shape == golden.shape
    assert float((ours - golden).abs().max()) <= tolerance


def tokenizer() -> Tokenizer:
    """Word n of the text vocabulary is "wn"; no other words."""
    words = Tokenizer(models.WordLevel({f"w{n}": n for n in range(SIZES["llm_vocab_size"])}, "w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return words


def words(ids: Sequence[int]) -> str:
    """The text whose tokens these are."""
    return " ".join(f"w{n}" for n in ids)


class PlainCodes:
    """Stands for an image tokenizer: codes are grey levels of 2 x 2 pixels."""

    factor = 2

    def encode(self, pixels: Tensor) -> Tensor:
        grey = torch.nn.functional.avg_pool2d(pixels.mean(1, keepdim=True), 2).flatten(1)
        return ((grey + 1) / 2 * (SIZES["codebook_size"] - 1)).round().long()

    def decode(self, codes: Tensor, shape: tuple[int, int] | None = None) -> Tensor:
        side = round(codes.shape[1] ** 0.5)
        rows, columns = shape or (side, side)
        grey = codes.view(-1, 1, rows, columns).float() / (SIZES["codebook_size"] - 1) * 2 - 1
        return grey.expand(-1, 3, -1, -1).repeat_interleave(2, -1).repeat_interleave(2, -2)


def processor(max_new_tokens: int = 12) -> Processor:
    ids = SpecialIds(*(IDS[name] for name in SpecialIds.__dataclass_fields__))
    text = Text(tokenizer(), ids, ChatTemplate("", "", ""), SIZES["max_seq_length_text"])
    side = 2 * round(SIZES["num_vq_tokens"] ** 0.5)
    defaults = GenerationDefaults(8, 5.0, 1.0, side, side, max_new_tokens)
    return Processor(text, PlainCodes(), defaults)


def recorded_noise(monkeypatch: pytest.MonkeyPatch, golden: dict[str, Tensor], group: str) -> None:
    """Seed n draws what the original drew for row n of a group."""

    class Recorded:
        def __init__(self, seed: int) -> None:
            self.exponentials = iter(golden[f"{group}.exp_noise"][:, seed])
            self.uniforms = iter(golden[f"{group}.uniform_noise"][:, seed])

        def exponential(self, *shape: int) -> Tensor:
            return next(self.exponentials).reshape(shape)

        def uniform(self, *shape: int) -> Tensor:
            return next(self.uniforms).reshape(shape)

    monkeypatch.setattr(layout, "Noise", Recorded)
    monkeypatch.setattr(reference, "Noise", Recorded)
