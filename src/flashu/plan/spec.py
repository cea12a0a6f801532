"""What a model is, as numbers: methods check themselves against it, costs are computed from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Drawing = Literal["flow", "masked", "autoregressive"]


@dataclass(frozen=True)
class Work:
    """Multiply-adds of a part: per token, per token and key it attends to, and once per forward."""

    per_token: int = 0
    per_key: int = 0
    once: int = 0

    def flops(self, tokens: int, keys: int = 0, rows: int = 1, once: bool = True) -> int:
        """FLOPs of ``rows`` of ``tokens`` queries over ``keys`` keys each (a multiply-add counts two)."""
        return 2 * (rows * tokens * (self.per_token + keys * self.per_key) + self.once * once)


@dataclass(frozen=True)
class WeightCounts:
    """How many numbers a model's weights are: ``total``; ``projections``: those that quantization narrows;
    ``staying``: what the device holds of an offloaded model, with the largest visitor."""

    total: int
    projections: int
    staying: int


@dataclass(frozen=True)
class ModelSpec:
    """Sizes and facts of one model; the only thing a method, a cost or a table may ask of it.

    ``neurons``: FFN width, the same in every expert. ``ffn_matrices``: of an FFN (3 gated, 2 plain). ``experts``: names
    of the parallel weight sets, of which a token uses one; ``text_expert``: text's, where there are several.
    ``drawing``: how images are drawn, None = not at all. ``head_blocks``: blocks of the drawing head whose output can
    be kept between forwards. ``context``: whether what stands before a block is computed "same" (under the block's
    own layer plan) or "cached" (once). ``branches``: guidance branches besides the main one. ``guidance_from``: the
    scale of a guidance of 0, which is off (1 where the authors guide by v + g (v - u)). ``codes``: range of the
    vocabulary that images are drawn from. ``markers``: tokens of a block besides the image's. ``image``, ``head``,
    ``output``: work of embedding an image, of the head's keepable part and of what follows it; ``picture``: of
    embedding one that is looked at, where that differs from ``image``. ``sees``: whether it answers questions about
    images; ``pictures``: most of them in one question, None = any number.
    """

    family: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    neurons: int
    vocabulary: int
    drawing: Drawing | None
    ffn_matrices: int = 3
    experts: tuple[str, ...] = ("ffn",)
    text_expert: str | None = None
    head_blocks: int = 0
    context: Literal["same", "cached"] = "same"
    branches: tuple[str, ...] = ("uncond",)
    guidance_from: int = 0
    codes: tuple[int, int] | None = None
    markers: int = 1
    sees: bool = True
    pictures: int | None = None
    image: Work = Work()
    head: Work = Work()
    output: Work = Work()
    picture: Work | None = None

    def scales(self, guidance: float) -> dict[str, float]:
        """The scale s of u + s (v - u) by guidance branch, of a request's ``guidance``; {}: no branch is needed."""
        scale = float(guidance) + self.guidance_from
        return {} if not guidance or scale == 1 else dict.fromkeys(self.branches, scale)

    @property
    def text_spans(self) -> tuple[tuple[str, int, int], ...]:
        """Expert of a single text token, as a layout says it."""
        return () if self.text_expert is None else ((self.text_expert, 0, 1),)

    @property
    def keeps_features(self) -> bool:
        """Whether a forward's features can stand for the next one's: the head's, or where it has no blocks, the last
        layer's output."""
        return self.drawing in ("flow", "masked")

    @property
    def attention(self) -> Work:
        """Projections and attention of one layer."""
        wide, narrow = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return Work(self.hidden * (2 * wide + 2 * narrow), 2 * wide)

    @property
    def keys_values(self) -> Work:
        """Keys and values alone of one layer."""
        return Work(2 * self.hidden * self.kv_heads * self.head_dim)

    def ffn(self, neurons: int) -> Work:
        """One FFN with ``neurons`` of its neurons."""
        return Work(self.ffn_matrices * self.hidden * neurons)

    @property
    def logits(self) -> Work:
        return Work(self.hidden * self.vocabulary)

    @property
    def code_logits(self) -> Work:
        """Logits over what images are drawn from."""
        low, high = self.codes or (0, self.vocabulary)
        return Work(self.hidden * (high - low))
