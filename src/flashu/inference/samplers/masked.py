"""Drawing by masked tokens (MaskGIT, Chang et al. 2022): all codes are predicted, the surest stay."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, Protocol

import torch
from torch import Tensor

from flashu.runtime.layout import Segment
from flashu.runtime.request import Want

Schedule = Literal["maskgit", "compounding"]
Share = Callable[[Tensor], Tensor]
"""The share of the forwards done, a scalar -> the share of codes that stay unknown."""
LEAST = 1e-20  # of what a logarithm is taken of


class Numbers(Protocol):
    """Random numbers of one sample, such as `noise.Noise`."""

    def exponential(self, *shape: int) -> Tensor: ...
    def uniform(self, *shape: int) -> Tensor: ...


def cosine(done: Tensor) -> Tensor:
    return torch.cos(done * math.pi * 0.5)


class MaskedSampler:
    """``ids`` [N]: the image at first, ``mask`` where a code is unknown, else ids from the range ``codes`` of the
    vocabulary, which stay. ``block``: ids [N] -> the tokens of a forward.

    ``schedule`` "maskgit": the ``share`` of the codes unknown at first stays unknown, chosen with noise
    whose ``temperature`` falls linearly to 0. "compounding", as in programs after Muse: the share is of all codes, at
    least one is masked again even where all were given, and every forward multiplies the temperature by 1 - done.
    """

    kind: Literal["block", "token"] = "block"
    want: Want = "logits"

    def __init__(
        self,
        ids: Tensor,
        total: int,
        codes: tuple[int, int],
        mask: int,
        block: Callable[[Tensor], Segment],
        noise: Numbers,
        temperature: float = 1.0,
        schedule: Schedule = "maskgit",
        share: Share = cosine,
    ) -> None:
        self.total, self.codes, self.mask = total, codes, mask
        self._block, self._noise, self._temperature, self._schedule = block, noise, temperature, schedule
        self._ids = ids
        self._cooled, self._share = temperature, share
        self._counted = len(ids) if schedule == "compounding" else int((ids == mask).sum())
        self.state = ids - codes[0]
        """Codes [N] from 0 on: those sampled last."""

    @property
    def ids(self) -> Tensor:
        """What the next forward is given [N]; even after the last, some are masked."""
        return self._ids

    def time(self, index: int) -> None:
        return None

    def space(self, index: int) -> int:
        return 0

    def segments(self, index: int) -> Segment:
        return self._block(self._ids)

    def advance(self, prediction: Tensor, index: int) -> None:
        """``prediction``: guided logits [N, codes]. Nothing waits for the device."""
        p = prediction.float().softmax(-1)
        ids, keeps = self._ids.to(p.device), self._schedule == "maskgit"
        unknown = ids == self.mask
        drawn = (p / self._noise.exponential(*p.shape).to(p.device)).argmax(-1)
        self.state = drawn = torch.where(unknown, drawn, ids - self.codes[0])
        sure = torch.where(unknown, p.gather(1, drawn[:, None])[:, 0], torch.finfo(p.dtype).max)
        gumbel = -(-self._noise.uniform(len(ids)).clamp(min=LEAST).log()).clamp(min=LEAST).log()
        done = (index + 1) / self.total
        self._cooled *= 1 - done
        temperature = self._temperature * (1 - done) if keeps else self._cooled
        score = sure.clamp(min=LEAST).log() + temperature * gumbel.to(p.device)
        score = score.masked_fill(~unknown, torch.inf) if keeps else score
        # In fp32 like the programs it is compared with: a share of exactly one half may be rounded down.
        wanted = int((self._counted * self._share(torch.tensor(done))).floor())
        masked = (unknown.sum() - 1).clamp(max=max(wanted, 1)).clamp(min=0 if keeps else 1)
        # Those below the first that stays; of equal ones none.
        first = score.sort().values.gather(0, masked[None])
        self._ids = torch.where(score < first, self.mask, drawn + self.codes[0])
