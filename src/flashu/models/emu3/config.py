"""Sizes and ids of an Emu3 model. Field names are those of the released config.json files."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from flashu.models.sizes import Checked, build


@dataclass(frozen=True)
class TextConfig(Checked):
    """The decoder (Llama form)."""

    vocab_size: int = 184622
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    max_position_embeddings: int = 9216
    rms_norm_eps: float = 1e-5
    rope_theta: float = 1e6


@dataclass(frozen=True)
class VQConfig(Checked):
    """The image tokenizer (MoVQ). ``attn_resolutions``: levels with attention; ``hidden_size``: its width there."""

    codebook_size: int = 32768
    embed_dim: int = 4
    latent_channels: int = 4
    in_channels: int = 3
    out_channels: int = 3
    temporal_downsample_factor: int = 4
    base_channels: int = 256
    channel_multiplier: tuple[int, ...] = (1, 2, 2, 4)
    num_res_blocks: int = 2
    attn_resolutions: tuple[int, ...] = (3,)
    hidden_size: int = 1024
    num_attention_heads: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("channel_multiplier", "attn_resolutions"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.temporal_downsample_factor & (self.temporal_downsample_factor - 1):
            raise ValueError(f"temporal_downsample_factor must be a power of two: {self.temporal_downsample_factor}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError("hidden_size must be a multiple of num_attention_heads")

    @property
    def factor(self) -> int:
        """Pixels per code, each way."""
        return 2 ** (len(self.channel_multiplier) - 1)


@dataclass(frozen=True)
class Ids(Checked):
    """``image`` stands for a picture in a row of ids; ``img`` stands between its size and its codes; ``eol`` ends a row
    of codes, ``eof`` the last; ``first``: code 0."""

    least = 0

    pad: int = 151643
    image: int = 151646
    eol: int = 151846
    eof: int = 151847
    bos: int = 151849
    eos: int = 151850
    img: int = 151851
    boi: int = 151852
    eoi: int = 151853
    first: int = 151854


@dataclass(frozen=True)
class Emu3Config(Checked):
    """``codes``: how many the vocabulary has, from ``ids.first`` on."""

    text: TextConfig = TextConfig()
    ids: Ids = Ids()
    codes: int = 32768

    def __post_init__(self) -> None:
        super().__post_init__()
        text, ids = self.text, self.ids
        if text.hidden_size % text.num_attention_heads or text.num_attention_heads % text.num_key_value_heads:
            raise ValueError("heads must divide the hidden size, and key-value heads the heads")
        if ids.first + self.codes > text.vocab_size or max(asdict(ids).values()) >= text.vocab_size:
            raise ValueError(f"ids or codes lie beyond the {text.vocab_size} tokens of the vocabulary")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Emu3Config:
        """Inverse of :meth:`to_dict`; unknown keys raise ``ValueError``."""
        parts = {"text": TextConfig, "ids": Ids}
        values = {key: build(parts[key], key, value) if key in parts else value for key, value in data.items()}
        return build(cls, "config", values)
