"""What the core asks of a model. Shapes: B rows, S tokens, D decoder width, d head width, N image tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from flashu.models.ffn import FFN, FFNWeights, Tap
from flashu.models.layers import AttentionContext, KeyValue, Rope, Span
from flashu.plan import ModelSpec


class Layer(Protocol):
    """One decoder layer. ``ffn``: weights by expert, instead of its own. It heeds ``context.query`` and
    ``context.gate`` (`AttentionContext`); ``normed`` is x [B, S, D] after its first norm, which routers read."""

    def __call__(
        self,
        x: Tensor,
        context: AttentionContext,
        ffn: Mapping[str, FFNWeights] | None = None,
        tap: Tap | None = None,
    ) -> tuple[Tensor, KeyValue]: ...

    def keys_values(self, x: Tensor, context: AttentionContext) -> KeyValue: ...
    def normed(self, x: Tensor, spans: tuple[Span, ...] = ()) -> Tensor: ...


class Head(Protocol):
    """What turns a block's hidden states into a prediction: an entrance, blocks whose output can be kept between
    forwards, and an exit. A block is called as block(x, context, *condition) -> (x, keys and values). ``contents``: of
    each row, the contents of its segments."""

    blocks: Sequence[Any]

    def condition(self, contents: Sequence[Sequence[Any]], width: int) -> tuple[Tensor | None, ...]:
        """What conditions the blocks on rows of ``width`` tokens (times, for one)."""

    def enter(self, hidden: Tensor) -> Tensor:
        """Normed hidden [B, S, D] -> x [B, S, d]."""

    def rope(self, position: Tensor) -> Rope:
        """Rotary tables of the blocks at positions [B, S]."""

    def prediction(self, features: Tensor, contents: Sequence[Sequence[Any]]) -> Tensor:
        """Features [B, N, d] of the image tokens -> what the sampler needs, one per row."""


class Processor(Protocol):
    """What surrounds the weights. The rest of it is its family's own business.

    Ids: ``pad`` fills up rows, ``placeholder`` stands for an image or video in one, ``stop`` ends an answer.
    """

    @property
    def pad(self) -> int: ...
    @property
    def placeholder(self) -> int: ...
    @property
    def stop(self) -> int: ...
    def row(self, text: str, images: int = 0) -> list[int]:
        """Ids of a question about so many images, a placeholder for each (see `words.around_images`); about none, of a
        message."""

    def cut(self, prompt: str) -> str:
        """A prompt shortened to what the model takes."""

    def frames(self, visual: Any) -> list[Tensor]:
        """Pixels [1, 3, H, W] of a picture, or of each frame of a video."""

    def decode(self, ids: list[int], special: bool = False) -> str:
        """The text of ids; ``special``: with its special tokens."""

    def to(self, device: torch.device | str | int) -> None:
        """Move the weights it holds, if any."""


class UnifiedModel(Protocol):
    """One transformer that draws and sees. It holds weights only: no request, no plan.

    ``quantization``: the scheme its projections are quantized by, None if they are not.
    """

    name: str
    """What it was loaded as; "" if nothing was."""
    quantization: str | None

    @property
    def spec(self) -> ModelSpec: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def device(self) -> torch.device: ...
    def to(self, *args: Any, **kwargs: Any) -> Any:
        """As of `torch.nn.Module`."""

    @property
    def layers(self) -> Sequence[Any]:
        """The decoder layers (see `Layer`)."""

    @property
    def head(self) -> Head | None: ...

    def embed(self, contents: Sequence[Any]) -> list[Tensor]:
        """Embedded tokens [S, D] of each segment's content (see `runtime.layout.Segment`)."""

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """Text tokens [B, S] -> [B, S, D]."""

    def get_input_embeddings(self) -> nn.Module:
        """The table of text tokens, which is looked up and never multiplied."""

    def get_output_embeddings(self) -> nn.Module:
        """What gives the logits over the whole vocabulary of normed hidden states."""

    def rope(self, position: Tensor) -> Rope: ...
    def norm(self, x: Tensor, spans: tuple[Span, ...] = ()) -> Tensor: ...
    def logits(self, hidden: Tensor, codes: tuple[int, int] | None = None) -> Tensor:
        """Over the whole vocabulary, or a range of it."""

    def ffns(self) -> Mapping[tuple[int, str], FFN]:
        """The FFN of each (layer, expert), in order."""

    def projections(self, *, lm_head: bool = False) -> Iterable[nn.Module]:
        """The modules whose linear layers quantization applies to."""

    def layout(self, processor: Any) -> Any:
        """How requests are written for this model: its family's `inference.actions.Layout`."""
