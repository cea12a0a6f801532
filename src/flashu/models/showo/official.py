"""The official checkpoints' config.json: the arguments of the original class, put into our terms."""

from __future__ import annotations

from typing import Any

from flashu.errors import CheckpointError
from flashu.models.defaults import GenerationDefaults
from flashu.models.showo.config import LLMConfig, ShowOConfig
from flashu.models.showo.processor import FACTOR

CLIP_SIZE = 1024  # channels of ViT-L/14
LLM = "phi-1_5"  # whose sizes are the defaults of `LLMConfig`
SPECIAL = 10


def official_config(data: dict[str, Any]) -> ShowOConfig:
    """Sizes from the original's arguments. A model this code cannot build raises ``CheckpointError``, and so does an
    argument that contradicts another."""
    path = str(data.get("llm_model_path") or LLM)
    if path.rstrip("/").rsplit("/", 1)[-1] != LLM:
        raise CheckpointError(f"config.json: llm_model_path is {path!r}; only {LLM} can be read")
    for key in ("vocab_size", "llm_vocab_size"):
        if not isinstance(data.get(key), int):
            raise CheckpointError(f"config.json: {key} must be a whole number, not {data.get(key)!r}")
    image_tokens = data.get("num_vq_tokens", 256)
    if not isinstance(image_tokens, int) or round(image_tokens**0.5) ** 2 != image_tokens or image_tokens < 1:
        raise CheckpointError(f"config.json: num_vq_tokens is {image_tokens!r}, not the codes of a square image")
    config = ShowOConfig(
        llm=LLMConfig(data["vocab_size"]),
        text_tokens=data["llm_vocab_size"],
        special_tokens=SPECIAL,
        codebook_size=data.get("codebook_size", 8192),
        image_tokens=image_tokens,
        clip_size=CLIP_SIZE if data.get("w_clip_vit") else None,
    )
    if data.get("mask_token_id", config.mask) != config.mask:
        raise CheckpointError(f"config.json: mask_token_id is {data['mask_token_id']!r}, but the last id {config.mask}")
    return config


def official_defaults(config: ShowOConfig) -> GenerationDefaults:
    """The settings of the authors' README: 50 steps, guidance 5 (scale 6), answers of 100 tokens."""
    side = round(config.image_tokens**0.5) * FACTOR
    return GenerationDefaults(steps=50, guidance=5.0, shift=1.0, height=side, width=side, max_new_tokens=100)
