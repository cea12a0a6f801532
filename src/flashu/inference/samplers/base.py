"""What draws: a sampler turns the predictions of its forwards into an image, one per run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

from torch import Tensor

from flashu.runtime.layout import Segment
from flashu.runtime.request import Want


class Sampler(Protocol):
    """One drawing under way: all of its state. ``kind``: a "block" computes all image tokens in every forward, a
    "token" appends one image token after another. ``want``: what it reads of the model. ``codes``: of which range."""

    kind: Literal["block", "token"]
    want: Want
    total: int
    """Forwards."""

    @property
    def codes(self) -> tuple[int, int] | None: ...

    def time(self, index: int) -> float | None:
        """Flow time of forward ``index``."""

    def space(self, index: int) -> int:
        """Tokens that the forwards from ``index`` on append to the contexts; those of a block leave none there."""

    def segments(self, index: int) -> Segment | Mapping[str, Segment]:
        """The tokens of forward ``index``, the same in every branch or by branch. Of a "token" sampler from forward 1
        on: ids [S] as content."""

    def advance(self, prediction: Tensor, index: int) -> None:
        """Go on by the guided prediction of forward ``index``."""

    @property
    def state(self) -> Tensor:
        """The drawing as it is now; after the last forward, the result."""
