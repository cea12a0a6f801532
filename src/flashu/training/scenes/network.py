"""What the trainer needs of a model, of whatever family: its rows, and what it loses on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from flashu.training.scenes.data import Pool
from flashu.training.scenes.examples import Example


@dataclass(frozen=True)
class Outcome:
    """``losses`` by name: "flow" or "codes" for pictures to draw, "answer". The hidden states of N image tokens, in
    reading order, are for the auxiliary losses (None where the rows have none): ``drawn`` [B,N,h], the normed output at
    (or right before) each cell that is drawn; ``middle`` [B,N,h], the same half-way; ``shown`` [B,N,h], the tokens of a
    picture that is looked at, as they enter the decoder or later."""

    losses: Mapping[str, Tensor]
    drawn: Tensor | None = None
    middle: Tensor | None = None
    shown: Tensor | None = None


class Network(Protocol):
    """A model in training. ``codec``: the class of the autoencoder whose latents or codes it draws. ``tasks``: of
    "draw", "answer", "edit", what it learns. ``width``: of the hidden states."""

    codec: Any
    tasks: tuple[str, ...]

    @property
    def module(self) -> nn.Module: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def width(self) -> int: ...
    def rows(self, examples: Sequence[Example], pool: Pool) -> Any:
        """Examples of one kind, as ``losses`` takes them."""

    def losses(self, rows: Any) -> Outcome:
        """One plain forward over whole rows."""

    def matrices(self) -> list[nn.Parameter]:
        """The ones that Muon updates: inside layers."""

    def compile(self) -> None:
        """Compile each layer; layers of one kind share the compiled code."""

    def copy(self, state: Mapping[str, Tensor]) -> Network:
        """Another model of these weights, for evaluation and export."""

    def save(self, folder: Path, codec: Any) -> None:
        """A checkpoint folder of this family, with bf16 weights."""
