"""What training and its evaluation need of a model, of whatever family."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from flashu.models.small_autoencoder import SmallAutoencoder


class States(Protocol):
    """What a forward of the decoder leaves behind, for S tokens of which N are the image's."""

    @property
    def hidden(self) -> Tensor: ...  # [B,S,h] normed output
    @property
    def fused(self) -> Tensor: ...  # [B,N,h] image tokens as they enter the decoder
    @property
    def middle(self) -> Tensor: ...  # [B,S,h] after half of the layers


class Network(Protocol):
    """A model that forwards whole rows: ``ids`` and ``pos`` [B,S], ``mask`` bool [B,1,S,S] (True = may attend),
    ``image``: the slots of the time token and the image tokens."""

    @property
    def module(self) -> nn.Module: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def width(self) -> int: ...  # h
    def forward(self, ids: Tensor, pos: Tensor, mask: Tensor, image: slice, latents: Tensor, t: Tensor) -> States: ...
    def velocity(self, states: Any, pos: Tensor, mask: Tensor, image: slice, size: tuple[int, int]) -> Tensor: ...
    def logits(self, hidden: Tensor) -> Tensor: ...
    def matrices(self) -> list[nn.Parameter]: ...  # the hidden ones, which Muon updates
    def compile(self) -> None: ...
    def copy(self, state: Mapping[str, Tensor]) -> Network: ...
    def save(self, folder: Path, autoencoder: SmallAutoencoder) -> None: ...
