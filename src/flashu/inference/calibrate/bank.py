"""FFN banks: the weights of the neurons a mask keeps (paper Eq. 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from flashu.errors import CalibrationError, FlashUError
from flashu.models.layers import FFNWeights
from flashu.models.products import pack
from flashu.models.protocol import UnifiedModel
from flashu.models.quantize import plain, requantized

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
    """Weight triples of the neurons at ``index`` [layers, K], copied, and quantized or packed if the model's are."""
    _check(model, index)
    weights: list[FFNWeights] = []
    for layer, own in zip(model.layers, index, strict=True):
        gate, up, down = (plain(weight) for weight in layer.mlp.weights())
        keep = own.to(gate.device)
        if layer.mlp.order is not None:
            keep = layer.mlp.order.to(gate.device).argsort()[keep]
        gate, up, down = (
            requantized(w, model.quantization) for w in (gate[keep], up[keep], down[:, keep].contiguous())
        )
        weights.append((pack(gate), pack(up), pack(down)) if model.packed else (gate, up, down))
    return weights


def bank_in_place(model: UnifiedModel, masks: Mapping[str, Tensor]) -> dict[str, list[FFNWeights]]:
    """Weight triples of one or two masks (indices [layers, K]) as slices of the model's own weights: no memory.

    Each layer's neurons are put in the order: of the first mask only, of both, of the second only, of neither.
    Nothing may run on the model meanwhile; `restore` puts them back. `FlashUError` if they are arranged for others.
    """
    if model.quantization is not None or model.packed:
        kind = "packed" if model.packed else "quantized"
        raise FlashUError(f"{kind} FFN neurons cannot be moved: leave in_place out, so that they are copied")
    for index in masks.values():
        _check(model, index)
    banks: dict[str, list[FFNWeights]] = {name: [] for name in masks}
    layouts = [_layout([index[i] for index in masks.values()], _neurons(model)) for i in range(model.num_layers)]
    now = [layer.mlp.order for layer in model.layers]
    if now[0] is None:
        for layer, (order, _) in zip(model.layers, layouts, strict=True):
            layer.mlp.arrange(order.to(model.device))
    elif not all(torch.equal(mine.cpu(), order) for mine, (order, _) in zip(now, layouts, strict=True)):
        raise FlashUError(
            "this model's FFN neurons are already arranged in place for other masks: release() the engine that did "
            "it, load the model once more, or leave in_place out"
        )
    for layer, (_, starts) in zip(model.layers, layouts, strict=True):
        gate, up, down = (weight.detach() for weight in layer.mlp.weights())
        for (name, index), start in zip(masks.items(), starts, strict=True):
            kept = slice(start, start + index.shape[1])
            banks[name].append((gate[kept], up[kept], down[:, kept]))
    return banks


def restore(model: UnifiedModel) -> None:
    """Every neuron back in its place, bit for bit."""
    for layer in model.layers:
        if layer.mlp.order is not None:
            layer.mlp.arrange(None)


def _neurons(model: UnifiedModel) -> int:
    return model.layers[0].mlp.down_proj.weight.shape[1]


def _layout(masks: Sequence[Tensor], count: int) -> tuple[Tensor, list[int]]:
    """The order [count] in which each of one or two masks is one stretch of neurons, and where each begins."""
    first, last = (torch.zeros(count, dtype=torch.bool).index_fill(0, m.cpu(), True) for m in (masks[0], masks[-1]))
    group = torch.where(first, torch.where(last, 1, 0), torch.where(last, 2, 3))
    return group.argsort(stable=True), [0, int((first & ~last).sum())][: len(masks)]


def _check(model: UnifiedModel, index: Tensor) -> None:
    if len(index) != model.num_layers or int(index.max()) >= _neurons(model):
        raise CalibrationError(f"a mask over {tuple(index.shape)} does not fit this model's FFNs; calibrate it anew")
