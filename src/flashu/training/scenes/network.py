"""What the trainer needs of a model, of whatever family: its rows, and what it loses on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from flashu.models.training import Example, Outcome, Pictures


class Network(Protocol):
    """A model in training. ``codec``: the class of the autoencoder whose latents or codes it draws. ``tasks``: of
    "draw", "answer", "edit", what it learns. ``width``: of the hidden states. ``tokenizer``: of its texts."""

    codec: Any
    tasks: tuple[str, ...]
    tokenizer: Tokenizer

    @property
    def module(self) -> nn.Module: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def width(self) -> int: ...
    def rows(self, examples: Sequence[Example], pool: Pictures) -> Any:
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
