"""Sizes and conventions of a Show-o2 model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from flashu.models.sizes import Checked, build


@dataclass(frozen=True)
class LLMConfig(Checked):
    """The language model (Qwen2.5 form). ``vocab_size`` is the number of embedding rows after resizing."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    tie_word_embeddings: bool
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6


@dataclass(frozen=True)
class VisionConfig(Checked):
    """The semantic layers (SigLIP encoder without its last layer, final norm and pooling head)."""

    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_hidden_layers: int = 26
    num_attention_heads: int = 16
    num_positions: int = 729
    layer_norm_eps: float = 1e-6


@dataclass(frozen=True)
class HeadConfig(Checked):
    """The diffusion (flow) head."""

    hidden_size: int = 2048
    intermediate_size: int = 8192
    num_layers: int = 10
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    head_dim: int = 64
    rms_norm_eps: float = 1e-5
    rope_theta: float = 5e5
    rope_factor: float = 32.0
    rope_low: float = 1.0
    rope_high: float = 4.0
    rope_original_length: int = 8192


@dataclass(frozen=True)
class ShowO2Config(Checked):
    """A whole Show-o2 model.

    ``unpatchify``: "raster" reads the head's output as the original does (token k owns latent cells 4k..4k+3 in
    raster order), "patch" as 2x2 patches. ``understanding_block``: "script" puts the bidirectional block of an image
    in a question where the released inference script puts it (image tokens and eoi), "training" where training does
    (time token and image tokens). ``exact_rope``: rotary frequencies stay fp32 in a model of lower precision; the
    original rounds them with the weights.
    """

    llm: LLMConfig
    vision: VisionConfig = field(default_factory=VisionConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    image_latent_dim: int = 16
    image_latent_height: int = 27
    image_latent_width: int = 27
    patch_size: int = 2
    unpatchify: Literal["raster", "patch"] = "raster"
    understanding_block: Literal["script", "training"] = "script"
    exact_rope: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.llm.hidden_size % self.llm.num_attention_heads:
            raise ValueError("llm.hidden_size must be a multiple of llm.num_attention_heads")
        if self.head.head_dim * self.head.num_attention_heads != self.head.hidden_size:
            raise ValueError("head.head_dim * head.num_attention_heads must equal head.hidden_size")
        for name, allowed in (("unpatchify", ("raster", "patch")), ("understanding_block", ("script", "training"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, not {getattr(self, name)!r}")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ShowO2Config:
        """Inverse of :meth:`to_dict`; unknown keys raise ``ValueError``."""
        parts = {"llm": LLMConfig, "vision": VisionConfig, "head": HeadConfig}
        values = {key: build(parts[key], key, value) if key in parts else value for key, value in data.items()}
        return build(cls, "config", values)
