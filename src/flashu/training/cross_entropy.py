"""Cross-entropy over a large vocabulary, some rows at a time: the logits of all never exist at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(
    logits_of: Callable[[Tensor], Tensor],
    parameters: tuple[Tensor, ...],
    hidden: Tensor,
    targets: Tensor,
    chunk: int | None = None,
) -> Tensor:
    """The sum of the cross-entropies of ``logits_of(hidden)`` [n, V] against ``targets`` [n].

    ``chunk``: rows at a time, None = all at once. In chunks the gradients are computed along with the loss, so nothing
    is computed twice. ``parameters``: what ``logits_of`` depends on besides hidden [n, D].
    """
    if chunk is None or len(hidden) <= chunk:
        return F.cross_entropy(logits_of(hidden).float(), targets, reduction="sum")
    if not torch.is_grad_enabled():
        parts = zip(hidden.split(chunk), targets.split(chunk), strict=True)
        return torch.stack([F.cross_entropy(logits_of(h).float(), t, reduction="sum") for h, t in parts]).sum()
    return _Chunked.apply(logits_of, targets, chunk, hidden, *parameters)


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_of: Any, targets: Tensor, chunk: int, hidden: Tensor, *parameters: Tensor) -> Tensor:
        learnt = [p for p in parameters if p.requires_grad]
        total = hidden.new_zeros((), dtype=torch.float32)
        rows: list[Tensor] = []
        sums: list[Tensor] | None = None
        for h, t in zip(hidden.detach().split(chunk), targets.split(chunk), strict=True):
            h = h.requires_grad_()
            with torch.enable_grad():
                loss = F.cross_entropy(logits_of(h).float(), t, reduction="sum")
            of_hidden, *of_weights = torch.autograd.grad(loss, [h, *learnt])
            rows.append(of_hidden)
            sums = of_weights if sums is None else [a.add_(b) for a, b in zip(sums, of_weights, strict=True)]
            total = total + loss.detach()
        found = iter(sums or [])
        ctx.save_for_backward(
            torch.cat(rows), *(next(found) if p.requires_grad else p.new_zeros(0) for p in parameters)
        )
        ctx.learnt = [p.requires_grad for p in parameters]
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        of_hidden, *of_weights = ctx.saved_tensors
        scale = [g * gradient if there else None for g, there in zip(of_weights, ctx.learnt, strict=True)]
        return None, None, None, of_hidden * gradient, *scale
