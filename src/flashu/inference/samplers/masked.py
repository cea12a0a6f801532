"""Drawing by masked tokens (MaskGIT, Chang et al. 2022): all codes are predicted, the surest stay."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from flashu.inference.samplers.noise import Noise
from flashu.runtime.layout import Segment
from flashu.runtime.request import Want


class MaskedSampler:
    """``count`` image tokens from ``codes`` (a range of the vocabulary), all unknown at first; ``mask`` is the id that
    stands for an unknown one. ``block``: ids [N] -> the tokens of a forward. ``temperature`` of the noise that decides
    which stay falls linearly to 0."""

    kind: Literal["block", "token"] = "block"
    want: Want = "logits"

    def __init__(
        self,
        count: int,
        total: int,
        codes: tuple[int, int],
        mask: int,
        block: Callable[[Tensor], Segment],
        noise: Noise,
        temperature: float = 1.0,
    ) -> None:
        self.total, self.codes, self.mask = total, codes, mask
        self._block, self._noise, self._temperature = block, noise, temperature
        self._ids = torch.full((count,), mask)
        self.state = self._ids
        """Codes [N]: those sampled last."""

    def time(self, index: int) -> None:
        return None

    def space(self, index: int) -> int:
        return 0

    def segments(self, index: int) -> Segment:
        return self._block(self._ids)

    def advance(self, prediction: Tensor, index: int) -> None:
        """``prediction``: guided logits [N, codes]."""
        count = len(self._ids)
        unknown = self._ids == self.mask
        p = prediction.float().softmax(-1).cpu()
        sampled = (p / self._noise.exponential(*p.shape)).argmax(-1)
        sampled = torch.where(unknown, sampled, self._ids - self.codes[0])
        self.state = sampled
        confidence = p.gather(1, sampled[:, None])[:, 0].masked_fill(~unknown, torch.inf)
        done = (index + 1) / self.total
        masked = min(max(int(count * math.cos(math.pi / 2 * done)), 1), int(unknown.sum()) - 1)
        gumbel = -(-self._noise.uniform(count).clamp(min=1e-20).log()).clamp(min=1e-20).log()
        score = confidence.clamp(min=1e-20).log() + self._temperature * (1 - done) * gumbel
        again = score.argsort()[: max(masked, 0)]
        self._ids = (sampled + self.codes[0]).index_fill(0, again, self.mask)
