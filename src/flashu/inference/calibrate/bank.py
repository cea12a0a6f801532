"""FFN banks: the weights of the neurons that a mask keeps (FlashU Eq. 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from flashu.errors import CalibrationError, FlashUError
from flashu.inference.calibrate.importance import UNSEEN
from flashu.models.ffn import FFN, FFNWeights
from flashu.models.protocol import UnifiedModel
from flashu.plan.cost import alignment, keep_count
from flashu.runtime.runner import Bank

Mask = list[Tensor | None]
"""Indices of the neurons kept in each FFN [K], ascending; None: of one that no token went through."""
Slices = Mapping[str, Mapping[tuple[int, str], tuple[int, int]]]
"""By mask, where the neurons that it keeps lie in each (layer, expert): (start, stop)."""


def kept(scores: Tensor, ratio: float, multiple: int | None = None) -> Mask:
    """The neurons with the highest scores [F, neurons], when the share ``ratio`` is pruned."""
    width = scores.shape[-1]
    count = keep_count(width, ratio, alignment(width) if multiple is None else multiple)
    return [None if bool((row == UNSEEN).all()) else row.topk(count).indices.sort().values for row in scores]


@torch.no_grad()
def bank(model: UnifiedModel, mask: Mask) -> dict[tuple[int, str], FFNWeights]:
    """Weights of the neurons kept, copied, and quantized or packed if the model's are."""
    pairs = _pairs(model, mask)
    return {key: ffn.select(index, model.quantization) for key, ffn, index in pairs if index is not None}


def arrange(model: UnifiedModel, masks: Mapping[str, Mask]) -> Slices:
    """Put the neurons of every FFN in an order in which what each of one or two masks keeps lies together; where that
    is.

    The order: of the first mask only, of both, of the second only, of neither. Nothing may run on the model meanwhile;
    `restore` puts them back. `FlashUError` if they are arranged for others.
    """
    order = arrangement(model, masks)
    for ffn, own in zip(model.ffns().values(), order, strict=True):
        if ffn.order is None:
            ffn.arrange(own)
    lying: dict[str, dict[tuple[int, str], tuple[int, int]]] = {name: {} for name in masks}
    for place, (name, mask) in enumerate(masks.items()):
        for n, (key, _, index) in enumerate(_pairs(model, mask)):
            if index is not None:
                start = _starts([m[n] for m in masks.values()])[place]
                lying[name][key] = (start, start + len(index))
    return lying


def sliced(model: UnifiedModel, slices: Slices) -> dict[str, Bank]:
    """The weights there, as views of the model's own as they are now: no memory."""
    ffns = model.ffns()
    return {name: {key: ffns[key].slice(*at) for key, at in own.items()} for name, own in slices.items()}


def arrangement(model: UnifiedModel, masks: Mapping[str, Mask]) -> list[Tensor]:
    """The order of every FFN's neurons for these masks; `FlashUError` if the model's are arranged for others."""
    if model.quantization is not None:
        raise FlashUError("quantized FFN neurons cannot be moved: leave in_place out, so that they are copied")
    ffns = list(model.ffns().values())
    for ffn in ffns:
        ffn.weights()  # refused before any neuron is moved
    for mask in masks.values():
        _pairs(model, mask)
    orders = [_order([mask[n] for mask in masks.values()], ffn.neurons) for n, ffn in enumerate(ffns)]
    if any(ffn.order is not None for ffn in ffns) and not arranged(model, orders):
        raise FlashUError(
            "this model's FFN neurons are already arranged in place for other masks: release() the engine that did "
            "it, load the model once more, or leave in_place out"
        )
    return orders


def arranged(model: UnifiedModel, orders: Sequence[Tensor]) -> bool:
    """Whether the neurons lie in these orders now."""
    pairs = zip(model.ffns().values(), orders, strict=True)
    return all(ffn.order is not None and torch.equal(ffn.order, order) for ffn, order in pairs)


def restore(model: UnifiedModel) -> None:
    """Every neuron back in its place, bit for bit."""
    moved = [ffn for ffn in model.ffns().values() if ffn.order is not None]
    for ffn in moved:
        ffn.weights()  # refused now or not at all, lest some are put back and others not
    for ffn in moved:
        ffn.arrange(None)


def _order(masks: Sequence[Tensor | None], count: int) -> Tensor:
    """The order [count] in which the neurons of each of one or two masks are next to each other."""
    first, last = (_member(masks[n], count) for n in (0, -1))
    group = torch.where(first, torch.where(last, 1, 0), torch.where(last, 2, 3))
    return group.argsort(stable=True)


def _starts(masks: Sequence[Tensor | None]) -> list[int]:
    """Where the neurons of each mask begin in that order."""
    if len(masks) == 1:
        return [0]
    kept = [set() if mask is None else set(mask.tolist()) for mask in masks]
    return [0, len(kept[0] - kept[1])]


def _member(mask: Tensor | None, count: int) -> Tensor:
    none = torch.zeros(count, dtype=torch.bool)
    return none if mask is None else none.index_fill(0, mask.cpu(), True)


def _pairs(model: UnifiedModel, mask: Mask) -> list[tuple[tuple[int, str], FFN, Tensor | None]]:
    ffns = model.ffns()
    fits = len(mask) == len(ffns) and all(
        index is None or int(index.max()) < ffn.neurons for ffn, index in zip(ffns.values(), mask, strict=False)
    )
    if not fits:
        raise CalibrationError("a mask does not fit this model's FFNs: calibrate it anew")
    return [(key, ffn, index) for (key, ffn), index in zip(ffns.items(), mask, strict=True)]
