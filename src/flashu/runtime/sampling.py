"""Choosing the next token from logits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flashu.errors import FlashUError

LEAST = 1e-30
"""A temperature below it is this one: fp32 cannot divide by less."""


def chooser(
    *, temperature: float = 0.0, top_k: int | None = None, top_p: float | None = None, seed: int = 0
) -> Callable[[Tensor], Tensor]:
    """How the next tokens of one row are chosen: logits [1, V] -> tokens [1], without waiting for the device.

    Temperature 0 is greedy; a row draws from its own ``seed``, so that its tokens do not depend on its batch.
    `FlashUError` for bad settings.
    """
    if not 0 <= temperature < float("inf"):
        raise FlashUError(f"temperature must be a finite number of at least 0, got {temperature}")
    if top_k is not None and (not isinstance(top_k, int) or top_k < 1):
        raise FlashUError(f"top_k must be a whole number of at least 1, got {top_k!r}")
    if top_p is not None and not 0 < top_p <= 1:
        raise FlashUError(f"top_p must be in (0, 1], got {top_p}")
    if temperature == 0 or top_k == 1:
        return greedy
    generator = torch.Generator().manual_seed(seed)

    def choose(logits: Tensor) -> Tensor:
        p = distribution(logits, temperature, top_k, top_p)
        # argmax(p / E) with E ~ Exponential(1) is a sample of p.
        noise = torch.empty(p.shape).exponential_(generator=generator)
        return (p / noise.to(p.device)).argmax(-1)

    return choose


def greedy(logits: Tensor) -> Tensor:
    return logits.argmax(-1)


def distribution(logits: Tensor, temperature: float, top_k: int | None, top_p: float | None) -> Tensor:
    """Probabilities [B, V] that are sampled from, fp32."""
    logits = logits.float()
    logits = (logits - logits.amax(-1, keepdim=True)) / max(temperature, LEAST)  # at most 0: cannot overflow
    if top_k is not None and top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
    if top_p is not None and top_p < 1:
        ordered, index = logits.sort(descending=True)
        p = ordered.softmax(-1)
        # A token goes when those before it already hold top_p of the mass; the first always stays.
        gone = (p.cumsum(-1) - p) >= top_p
        logits = logits.scatter(1, index, ordered.masked_fill(gone, -torch.inf))
    return logits.softmax(-1)


def drawn_seed(generator: torch.Generator | None = None) -> int:
    """A seed drawn from a generator, or from torch's global one: equal generators give equal seeds."""
    device = None if generator is None else generator.device
    # 32 bits: more would not reach the CPU's generator.
    return int(torch.randint(2**32, (1,), generator=generator, device=device))
