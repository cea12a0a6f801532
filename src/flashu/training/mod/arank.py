"""ARank: the rank of a layer's attention matrices, by which UniMoD finds layers whose tokens repeat each other.

A causal matrix without its diagonal has the generic rank S - 1, so the number measures which singular values fall
below the tolerance; it depends on the dtype, on S and on attention sinks. The spread and an effective rank stand
beside it, and near ties are reported.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from flashu.errors import FlashUError
from flashu.models.batches import TaskRows
from flashu.plan import LayerPlan
from flashu.runtime.runner import Runner
from flashu.runtime.view import View
from flashu.training.exact import layout_of

log = logging.getLogger("flashu")
Variant = Literal["prob", "score"]
TIE = 0.5
"""Layers whose ARank differs by no more count as near ties."""


@dataclass(frozen=True, eq=False)
class ARank:
    """Of one task: ``ranks`` [rows, layers, heads]; ``effective`` [layers]: exp of the entropy of the normalized
    singular values, mean; ``length`` [rows]: tokens of each row; ``nearest``: the least |log10| distance of a singular
    value from the tolerance, S x eps x the largest of its matrix."""

    ranks: Tensor
    effective: Tensor
    length: tuple[int, ...]
    nearest: float

    @property
    def mean(self) -> Tensor:
        """[layers]."""
        return self.ranks.float().mean(dim=(0, 2))

    @property
    def spread(self) -> Tensor:
        """Standard deviation over rows and heads [layers]."""
        return self.ranks.float().transpose(0, 1).flatten(1).std(dim=1, correction=0)

    @property
    def keep(self) -> dict[int, float]:
        """ARank by row length, a share of tokens to keep for each layer."""
        by_row = self.ranks.float().mean(2) / torch.tensor(self.length)[:, None]
        return {i: float(v) for i, v in enumerate(by_row.mean(0).clamp(min=1e-3, max=1.0))}


def ranks_of(weights: Tensor) -> tuple[Tensor, Tensor, float]:
    """Rank, effective rank [...] and the nearest distance of a singular value from the tolerance, of attention matrices
    [..., S, S], whose diagonal is left out."""
    matrix = weights.float().clone()
    matrix.diagonal(dim1=-2, dim2=-1).zero_()
    values = torch.linalg.svdvals(matrix)
    tolerance = values.amax(-1, keepdim=True) * matrix.shape[-1] * torch.finfo(torch.float32).eps
    share = values / values.sum(-1, keepdim=True).clamp(min=1e-30)
    effective = torch.exp(-(share * share.clamp(min=1e-30).log()).sum(-1))
    there = values > 0
    distance = (values[there].log10() - tolerance.expand_as(values)[there].log10()).abs()
    nearest = float(distance.min()) if len(distance) else float("inf")
    return (values > tolerance).sum(-1), effective, nearest


@torch.no_grad()
def arank(model: Any, rows: Sequence[TaskRows], variant: Variant = "prob") -> dict[str, ARank]:
    """ARank of each task's rows, without their padding. "prob": of the attention weights; "score": of the scores before
    the softmax. What a token may not see is 0."""
    if variant not in ("prob", "score"):
        raise FlashUError(f"ARank is of prob or of score, not of {variant!r}")
    found: dict[str, list[tuple[Tensor, Tensor, int, float]]] = {}
    for batch in rows:
        for n in range(batch.shape[0]):
            width = int(batch.valid[n].sum())
            columns = batch.valid[n].nonzero()[:, 0][None]
            row = batch.pick([n], columns)
            ranks, effective, nearest = [], [], float("inf")
            for matrices in attention(model, row, variant):
                rank, spread, distance = ranks_of(matrices)
                ranks.append(rank.cpu())
                effective.append(spread.mean().cpu())
                nearest = min(nearest, distance)
            found.setdefault(batch.task, []).append((torch.stack(ranks), torch.stack(effective), width, nearest))
    return {
        task: ARank(
            torch.stack([r for r, *_ in parts]),
            torch.stack([e for _, e, *_ in parts]).mean(0),
            tuple(w for *_, w, _ in parts),
            min(d for *_, d in parts),
        )
        for task, parts in found.items()
    }


def attention(model: Any, row: TaskRows, variant: Variant) -> list[Tensor]:
    """Attention matrices [heads, S, S] of every layer, of a row without padding."""
    taken: dict[int, dict[str, Tensor]] = {}

    def observe(layer: int, expert: str, name: str, value: Tensor, layout: Any) -> None:
        if name in ("query", "key"):
            taken.setdefault(layer, {})[name] = value

    runner = Runner(model, observer=observe)
    x = row.tokens if row.tokens.is_floating_point() else model.embed_tokens(row.tokens)
    width = row.shape[1]
    mask = torch.ones(1, 1, width, width, dtype=torch.bool, device=x.device).tril()
    mask = mask if isinstance(row.mask, str) else row.mask
    runner.walk(x, layout_of(row), LayerPlan(), view=View(model.rope(row.position), mask))
    matrices = []
    for layer in sorted(taken):
        query, key = taken[layer]["query"].float(), taken[layer]["key"].float()
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        if variant == "prob":
            scores = scores.masked_fill(~mask, -torch.inf).softmax(-1)
        matrices.append(scores.masked_fill(~mask, 0.0)[0])
    return matrices


def select_layers(ranks: Sequence[float], count: int, protect: Sequence[int] = ()) -> list[int]:
    """The ``count`` layers of lowest ARank (or as many as there are), ascending, but for those to ``protect``; on a tie
    the later one."""
    free = [i for i in range(len(ranks)) if i not in set(protect)]
    order = sorted(free, key=lambda i: (float(ranks[i]), -i))
    if 0 < count < len(order) and float(ranks[order[count]]) - float(ranks[order[count - 1]]) <= TIE:
        log.warning(
            "ARank hardly tells layer %d (chosen) from layer %d (not): %.2f and %.2f",
            order[count - 1], order[count], float(ranks[order[count - 1]]), float(ranks[order[count]]),
        )  # fmt: skip
    return sorted(order[:count])


def protected(layers: int) -> tuple[int, ...]:
    """The first three and the last, which are left whole."""
    return tuple(dict.fromkeys((*range(min(3, layers)), layers - 1)))


def by_arank(
    base: Any, found: Mapping[str, ARank], count: int | None = None, protect: Sequence[int] | None = None
) -> Any:
    """A config whose tasks keep, in as many layers as before (or ``count``), what they kept there, but in the layers of
    lowest ARank. ``protect``: default `protected`."""
    keep = {}
    for task, schedule in base.keep.items():
        if task not in found:
            raise FlashUError(f"ARank of task {task!r} is not known: give rows of it")
        mean = found[task].mean.tolist()
        chosen = select_layers(mean, count or len(schedule), protected(len(mean)) if protect is None else protect)
        shares = [share for _, share in sorted(schedule.items())]
        keep[task] = dict(zip(chosen, shares if len(shares) == len(chosen) else shares[: len(chosen)], strict=True))
    return replace(base, keep=keep)
