"""Wanda scores of FFN neurons (paper section 3.3.1, Eq. 2), gathered from forwards that really happen."""

from __future__ import annotations

import torch
from torch import Tensor

from flashu.models.protocol import UnifiedModel
from flashu.models.quantize import plain
from flashu.runtime.tokens import Tokens


class FFNNorms:
    """Observer that sums the squares of each FFN neuron's activation over all real tokens of all forwards."""

    def __init__(self, num_layers: int) -> None:
        self.squares: list[Tensor | None] = [None] * num_layers

    def __call__(self, layer: int, name: str, value: Tensor, tokens: Tokens) -> None:
        if name != "ffn":
            return
        active = value.float()
        if not bool(tokens.valid.all()):
            active = active[tokens.valid.to(value.device)]
        squares = active.square().flatten(0, -2).sum(0)
        before = self.squares[layer]
        self.squares[layer] = squares if before is None else before + squares

    def norms(self) -> Tensor:
        """L2 norm of each neuron's activation over the tokens seen [layers, neurons], fp32.

        Eq. 2 speaks of the mean norm; per layer both rank the neurons alike.
        """
        missing = [i for i, s in enumerate(self.squares) if s is None]
        if missing:
            raise RuntimeError(f"no activations were observed in layers {missing}")
        return torch.stack([s for s in self.squares if s is not None]).sqrt()


def wanda(model: UnifiedModel, norms: Tensor) -> Tensor:
    """Importance of each neuron of the checkpoint [layers, neurons]: activation norm times the sum of |weights| that
    read it (Eq. 2)."""
    reads = torch.stack([plain(layer.mlp.down_proj.weight).float().abs().sum(0) for layer in model.layers])
    scores = norms * reads.to(norms.device)
    return torch.stack([layer.mlp.stored(own) for layer, own in zip(model.layers, scores, strict=True)])
