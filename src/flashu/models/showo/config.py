"""Sizes and conventions of a Show-o model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from flashu.models.sizes import Checked, build


@dataclass(frozen=True)
class LLMConfig(Checked):
    """The language model (Phi form, with norms of queries and keys). ``vocab_size`` counts text, special tokens, codes
    and the mask."""

    vocab_size: int
    hidden_size: int = 2048
    intermediate_size: int = 8192
    num_hidden_layers: int = 24
    num_attention_heads: int = 32
    layer_norm_eps: float = 1e-5
    partial_rotary_factor: float = 0.5
    rope_theta: float = 1e4

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def rotary_dim(self) -> int:
        """Channels of a head that are rotated; the others pass."""
        return int(self.partial_rotary_factor * self.head_dim)


@dataclass(frozen=True)
class ShowOConfig(Checked):
    """A whole Show-o model. Token ids in order: text, [PAD], the special tokens, codes, the mask.

    ``text_tokens``: size of the bare tokenizer; ``special_tokens``: what Show-o adds, [PAD] included. ``image_tokens``:
    codes of an image. ``max_text``: most tokens of a prompt with its two marks. ``clip_size``: channels of the CLIP
    features that pictures in questions are shown by; None = by their codes. ``remasking``: "original" as in the
    released program, where the temperature compounds over the steps, the schedule counts given codes too, and a picture
    that is known whole comes back with some codes changed; "maskgit" as MaskGIT describes it.
    """

    llm: LLMConfig
    text_tokens: int = 50295
    special_tokens: int = 10
    codebook_size: int = 8192
    image_tokens: int = 256
    max_text: int = 128
    clip_size: int | None = None
    remasking: Literal["original", "maskgit"] = "original"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.llm.hidden_size % self.llm.num_attention_heads:
            raise ValueError("llm.hidden_size must be a multiple of llm.num_attention_heads")
        if self.llm.partial_rotary_factor > 1:
            raise ValueError(f"llm.partial_rotary_factor is a share of a head, not {self.llm.partial_rotary_factor}")
        if self.llm.rotary_dim % 2:
            raise ValueError(f"llm.partial_rotary_factor leaves {self.llm.rotary_dim} rotated channels: an odd number")
        if self.llm.vocab_size != self.codes[1] + 1:
            raise ValueError(
                f"llm.vocab_size is {self.llm.vocab_size}, but {self.text_tokens} text tokens, {self.special_tokens} "
                f"special ones, {self.codebook_size} codes and the mask make {self.codes[1] + 1}"
            )
        if self.remasking not in ("original", "maskgit"):
            raise ValueError(f"remasking must be 'original' or 'maskgit', not {self.remasking!r}")

    @property
    def codes(self) -> tuple[int, int]:
        """Range of the codes in the vocabulary."""
        first = self.text_tokens + self.special_tokens
        return first, first + self.codebook_size

    @property
    def mask(self) -> int:
        """Id of a code that is not known."""
        return self.llm.vocab_size - 1

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ShowOConfig:
        """Inverse of :meth:`to_dict`; unknown keys raise ``ValueError``."""
        values = {key: build(LLMConfig, key, value) if key == "llm" else value for key, value in data.items()}
        return build(cls, "config", values)
