"""Choosing the next token from logits."""

from __future__ import annotations

from numbers import Real

import torch
from torch import Tensor

from flashu.errors import FlashUError

LEAST = 1e-30
"""A temperature below it is this one: fp32 cannot divide by less."""
MOST = 1e6
"""One above it is this one: all tokens are equally likely long before."""


class Chooser:
    """How the next tokens of one row are chosen; see `chooser`."""

    def __init__(self, temperature: float, top_k: int | None, top_p: float | None, seed: int) -> None:
        self.greedy = temperature == 0 or top_k == 1
        self._settings = (temperature, top_k, top_p)
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, logits: Tensor) -> Tensor:
        """Logits [B, V] -> tokens [B], without waiting for the device."""
        return logits.argmax(-1) if self.greedy else self.draw(self.distribution(logits))

    def distribution(self, logits: Tensor) -> Tensor:
        """The probabilities [B, V] that tokens are drawn from, where they are drawn."""
        return distribution(logits, *self._settings)

    def draw(self, p: Tensor) -> Tensor:
        """A sample [B] of each row of p [B, V]: argmax(p / E) with E ~ Exponential(1)."""
        noise = torch.empty(p.shape).exponential_(generator=self._generator)
        return (p / noise.to(p.device)).argmax(-1)

    def verified(self, logits: Tensor, drafted: Tensor, chances: Tensor | None = None) -> list[int]:
        """The tokens that follow where ``drafted`` [K] were proposed: those accepted, and one more.

        ``logits`` [K + 1, V]: of the model, after nothing drafted and after each. Greedy, they are the tokens of K + 1
        forwards. Drawn, they have the model's distribution (rejection sampling, Leviathan et al. 2023): a draft is
        accepted with probability min(1, p / q), and a token in place of a rejected one is drawn from max(0, p - q).
        ``chances`` [K, V]: the distributions q that the drafts were drawn from; None = each was certain.
        """
        if self.greedy:
            best = logits.argmax(-1)
            accepted = (best[:-1] == drafted).cumprod(0).sum(0, keepdim=True)
            count, *tokens = torch.cat((accepted, best)).tolist()  # the one wait for the device
            return tokens[: count + 1]
        p = self.distribution(logits)
        q = torch.zeros_like(p)
        if chances is None:
            q[:-1].scatter_(1, drafted[:, None], 1.0)
        else:
            q[:-1] = chances
        ratio = (p / q)[:-1].gather(1, drafted[:, None])[:, 0]
        chance = torch.rand(len(drafted), generator=self._generator).to(p.device)
        accepted = (chance < ratio).cumprod(0).sum(0, keepdim=True)
        rest = (p - q).clamp(min=0)[accepted]  # behind the last draft q is nought, and this is p
        count, *tokens = torch.cat((accepted, drafted, self.draw(rest))).tolist()
        return [*tokens[:count], tokens[-1]]


def chooser(
    *, temperature: float = 0.0, top_k: int | None = None, top_p: float | None = None, seed: int = 0
) -> Chooser:
    """How the next tokens of one row are chosen.

    Temperature 0 is greedy; a row draws from its own ``seed``, so that its tokens do not depend on its batch.
    `FlashUError` for bad settings.
    """
    if not isinstance(temperature, Real) or not 0 <= temperature < float("inf"):
        raise FlashUError(f"temperature must be a finite number of at least 0, got {temperature!r:.80}")
    if top_k is not None and (not isinstance(top_k, int) or top_k < 1):
        raise FlashUError(f"top_k must be a whole number of at least 1, got {top_k!r}")
    if top_p is not None and (not isinstance(top_p, Real) or not 0 < top_p <= 1):
        raise FlashUError(f"top_p must be in (0, 1], got {top_p!r:.80}")
    return Chooser(float(min(temperature, MOST)), top_k, top_p, seed)


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
