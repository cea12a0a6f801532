"""FFN banks: the weights of the neurons a mask keeps (paper Eq. 3)."""

from __future__ import annotations

import torch
from torch import Tensor

from flashu.errors import CalibrationError
from flashu.models.layers import FFNWeights
from flashu.models.protocol import UnifiedModel

RELEASED_ALIGNMENT = 64


def keep_count(width: int, ratio: float, multiple: int) -> int:
    """Neurons kept of ``width`` when the share ``ratio`` is pruned, rounded down to a multiple of ``multiple``."""
    ideal = width - int(width * ratio)
    aligned = ideal // multiple * multiple
    return aligned or (multiple if multiple <= width else max(ideal, 1))


def alignment(width: int) -> int:
    """The multiple a kept width is aligned to: 64 as in the released program, 16 for networks too narrow for that."""
    return RELEASED_ALIGNMENT if width >= 1024 else 16


def kept(scores: Tensor, ratio: float, multiple: int | None = None) -> Tensor:
    """Indices of the neurons kept in each layer [layers, K], ascending: those with the highest scores."""
    width = scores.shape[-1]
    count = keep_count(width, ratio, alignment(width) if multiple is None else multiple)
    return scores.topk(count, dim=-1).indices.sort(dim=-1).values


@torch.no_grad()
def bank(model: UnifiedModel, index: Tensor) -> list[FFNWeights]:
    """Weight triples of the neurons at ``index`` [layers, K]."""
    if len(index) != model.num_layers or int(index.max()) >= model.layers[0].mlp.down_proj.weight.shape[1]:
        raise CalibrationError(f"a mask over {tuple(index.shape)} does not fit this model's FFNs; calibrate it anew")
    weights = []
    for layer, keep in zip(model.layers, index.to(model.device), strict=True):
        gate, up, down = layer.mlp.weights()
        weights.append((gate[keep], up[keep], down[:, keep].contiguous()))
    return weights
