"""Choosing the next token from logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def choose(
    logits_BV: Tensor,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generators: Sequence[torch.Generator] | None = None,
) -> Tensor:
    """Next token of each row [B]. Temperature 0 is greedy; ``generators``: one CPU generator per row.

    Rows draw from their own generator, so a row's sample does not depend on the batch it is in.
    """
    if temperature == 0 or top_k == 1:
        return logits_BV.argmax(-1)
    logits = logits_BV.float() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
    if top_p is not None and top_p < 1:
        ordered, index = logits.sort(descending=True)
        p = ordered.softmax(-1)
        # A token goes when those before it already hold top_p of the mass; the first always stays.
        gone = (p.cumsum(-1) - p) >= top_p
        logits = logits.scatter(1, index, ordered.masked_fill(gone, -torch.inf))
    p = logits.softmax(-1).cpu()
    rows = [torch.multinomial(p[n], 1, generator=generators[n] if generators else None) for n in range(len(p))]
    return torch.cat(rows).to(logits_BV.device)
