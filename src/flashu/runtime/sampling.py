"""Choosing the next token from logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from flashu.errors import FlashUError


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


def chooser(
    rows: int, *, temperature: float = 0.0, top_k: int | None = None, top_p: float | None = None, seed: int = 0
) -> Callable[[Tensor], Tensor]:
    """How the next tokens of ``rows`` rows are chosen; row i samples with seed + i. `FlashUError` for bad settings."""
    if not 0 <= temperature < float("inf"):
        raise FlashUError(f"temperature must be a finite number of at least 0, got {temperature}")
    if top_k is not None and (not isinstance(top_k, int) or top_k < 1):
        raise FlashUError(f"top_k must be a whole number of at least 1, got {top_k!r}")
    if top_p is not None and not 0 < top_p <= 1:
        raise FlashUError(f"top_p must be in (0, 1], got {top_p}")
    generators = [torch.Generator().manual_seed(seed + n) for n in range(rows)]
    return partial(choose, temperature=temperature, top_k=top_k, top_p=top_p, generators=generators)


def drawn_seed(generator: torch.Generator | None = None) -> int:
    """A seed drawn from a generator, or from torch's global one: equal generators give equal seeds."""
    device = None if generator is None else generator.device
    # 32 bits: more would not reach the CPU's generator.
    return int(torch.randint(2**32, (1,), generator=generator, device=device))
