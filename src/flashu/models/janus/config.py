"""Sizes and ids of a Janus-Pro model. Field names are those of transformers' config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flashu.errors import CheckpointError


@dataclass(frozen=True)
class TextConfig:
    """The decoder (Llama form)."""

    vocab_size: int = 102400
    hidden_size: int = 2048
    intermediate_size: int = 5632
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    num_key_value_heads: int = 16
    max_position_embeddings: int = 16384
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e4


@dataclass(frozen=True)
class VisionConfig:
    """The tower that sees pictures, and the ``depth`` layers behind it."""

    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    image_size: int = 384
    patch_size: int = 16
    layer_norm_eps: float = 1e-6
    mlp_ratio: float = 4.0
    attention_bias: bool = True
    depth: int = 2

    @property
    def side(self) -> int:
        """Patches of a picture, each way."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class VQConfig:
    """The codes, the decoder that makes pixels of them, and the layers (``num_hidden_layers``) that embed them."""

    embed_dim: int = 8
    num_embeddings: int = 16384
    latent_channels: int = 256
    base_channels: int = 128
    channel_multiplier: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    out_channels: int = 3
    projection_dim: int = 2048
    num_hidden_layers: int = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "channel_multiplier", tuple(self.channel_multiplier))

    @property
    def factor(self) -> int:
        """Pixels per code, each way."""
        return 2 ** (len(self.channel_multiplier) - 1)


@dataclass(frozen=True)
class Ids:
    """``image`` stands for a patch of a picture in a row of ids."""

    bos: int = 100000
    eos: int = 100001
    pad: int = 100002
    boi: int = 100016
    eoi: int = 100593
    image: int = 100581


@dataclass(frozen=True)
class JanusConfig:
    """``tied``: whether words are embedded and predicted by one table."""

    text: TextConfig = TextConfig()
    vision: VisionConfig = VisionConfig()
    vq: VQConfig = VQConfig()
    ids: Ids = Ids()
    tied: bool = False

    @property
    def codes(self) -> tuple[int, int]:
        """The ids of codes: those that follow the words. They have an embedding and a head of their own."""
        return self.text.vocab_size, self.text.vocab_size + self.vq.num_embeddings


PRO_1B = JanusConfig()
PRO_7B = JanusConfig(
    TextConfig(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=30, num_attention_heads=32, num_key_value_heads=32
    ),
    vq=VQConfig(projection_dim=4096),
)


def official_config(data: Mapping[str, Any], ids: Ids) -> JanusConfig:
    """Sizes from transformers' config.json. `CheckpointError` for a model that this code cannot build."""
    text, vision, vq = (dict(data.get(name) or {}) for name in ("text_config", "vision_config", "vq_config"))
    rope = text.get("rope_parameters") or {}
    text |= {"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {}
    odd = {
        "vision_config.use_qk_norm": vision.get("use_qk_norm"),
        "vision_config.hidden_act": vision.get("hidden_act", "gelu") != "gelu",
        "vq_config.hidden_act": vq.get("hidden_act", "gelu") != "gelu",
        "text_config.hidden_act": text.get("hidden_act", "silu") != "silu",
        "text_config.attention_bias": text.get("attention_bias"),
        "text_config.mlp_bias": text.get("mlp_bias"),
        "text_config.rope_parameters": rope.get("rope_type", "default") != "default",
    }
    if strange := [name for name, wrong in odd.items() if wrong]:
        raise CheckpointError(f"config.json: {', '.join(strange)}: this is not Janus-Pro's architecture")

    def known(cls: Any, values: Mapping[str, Any]) -> Any:
        return cls(**{name: values[name] for name in cls.__dataclass_fields__ if values.get(name) is not None})

    tied = bool(data.get("tie_word_embeddings", True))
    return JanusConfig(known(TextConfig, text), known(VisionConfig, vision), known(VQConfig, vq), ids, tied)
