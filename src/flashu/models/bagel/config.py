"""Sizes and conventions of a BAGEL model, under the names of the released config files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from flashu.models.sizes import Checked, build


@dataclass(frozen=True)
class LLMConfig(Checked):
    """The language model (Qwen2.5 form with q/k norms), of which there are two experts."""

    vocab_size: int = 152064
    hidden_size: int = 3584
    intermediate_size: int = 18944
    num_hidden_layers: int = 28
    num_attention_heads: int = 28
    num_key_value_heads: int = 4
    tie_word_embeddings: bool = False
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True)
class VisionConfig(Checked):
    """The ViT (SigLIP form). ``num_hidden_layers``: those that run, one fewer than the released vit_config.json says.
    ``image_size``: pixels of the square whose patches the learned position table has."""

    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_hidden_layers: int = 26
    num_attention_heads: int = 16
    patch_size: int = 14
    image_size: int = 980
    layer_norm_eps: float = 1e-6

    @property
    def side(self) -> int:
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class BagelConfig(Checked):
    """A whole BAGEL model. ``max_latent_size``: side of the table of latent positions, in tokens; ``downsample``:
    pixels per latent cell. ``visual_gen``: whether the generation expert and the latent path are there.
    """

    llm: LLMConfig = field(default_factory=LLMConfig)
    vit: VisionConfig = field(default_factory=VisionConfig)
    vit_max_num_patch_per_side: int = 70
    latent_patch_size: int = 2
    max_latent_size: int = 64
    z_channels: int = 16
    downsample: int = 8
    visual_gen: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        heads, width = self.llm.num_attention_heads, self.llm.hidden_size
        if width % heads or heads % self.llm.num_key_value_heads:
            raise ValueError("llm: heads must divide hidden_size, and key-value heads the heads")
        if width % 4:
            raise ValueError("llm.hidden_size must be a multiple of 4, for its tables of positions")
        if self.vit_max_num_patch_per_side > self.vit.side:
            raise ValueError(
                f"vit_max_num_patch_per_side is {self.vit_max_num_patch_per_side}, but the position table of the ViT "
                f"has {self.vit.side} patches a side"
            )

    @property
    def cell(self) -> int:
        """Pixels of one latent token, each way."""
        return self.downsample * self.latent_patch_size

    @property
    def token_size(self) -> int:
        """Numbers of one latent token."""
        return self.latent_patch_size**2 * self.z_channels

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> BagelConfig:
        """Inverse of :meth:`to_dict`; unknown keys raise ``ValueError``."""
        parts = {"llm": LLMConfig, "vit": VisionConfig}
        values = {key: build(parts[key], key, value) if key in parts else value for key, value in data.items()}
        return build(cls, "config", values)
