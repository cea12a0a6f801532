"""Wanda scores of FFN neurons (FlashU section 3.3.1, Eq. 2), gathered from forwards that really happen."""

from __future__ import annotations

import torch
from torch import Tensor

from flashu.errors import CalibrationError
from flashu.models.protocol import UnifiedModel
from flashu.runtime.layout import TokenLayout

UNSEEN = -1.0
"""Score of the neurons of an FFN that no token went through (another task's expert)."""


class FFNNorms:
    """Observer that sums the squares of each FFN neuron's activation over all real tokens of all forwards."""

    def __init__(self) -> None:
        self.squares: dict[tuple[int, str], Tensor] = {}

    def __call__(self, layer: int, expert: str, name: str, value: Tensor, layout: TokenLayout) -> None:
        if name != "ffn":
            return
        active = value.float()
        if not bool(layout.valid.all()):
            active = active[layout.valid.to(value.device)]
        squares = active.square().flatten(0, -2).sum(0)
        before = self.squares.get((layer, expert))
        self.squares[layer, expert] = squares if before is None else before + squares

    def scores(self, model: UnifiedModel) -> Tensor:
        """Importance of each of the checkpoint's neurons, one row per FFN as `UnifiedModel.ffns` lists them [F, K].

        Eq. 2 speaks of the mean norm of the activations, this takes the sum's: in one FFN both rank the neurons alike.
        """
        if not self.squares:
            raise RuntimeError("no activations were observed")
        rows = []
        for key, ffn in model.ffns().items():
            squares = self.squares.get(key)
            unseen = torch.full((ffn.neurons,), UNSEEN)
            rows.append(unseen if squares is None else ffn.importance(squares.sqrt()).cpu())
        scores = torch.stack(rows)
        if not bool(scores.isfinite().all()):
            raise CalibrationError("the activations are not finite: the weights or the samples are unusable")
        return scores
