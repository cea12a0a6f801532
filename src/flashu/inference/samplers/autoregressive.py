"""Drawing one image token after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from flashu.inference.samplers.noise import Noise
from flashu.runtime.layout import Segment
from flashu.runtime.request import Want


class AutoregressiveSampler:
    """``total`` image tokens from ``codes``, a range of the vocabulary. ``tokens``: ids -> the segment that appends
    them. ``forced``: index of a code -> ids that follow it and need no forward of their own (an end of line).
    ``top_k``: sample among so many, 1 = greedy."""

    kind: Literal["block", "token"] = "token"
    want: Want = "logits"

    def __init__(
        self,
        total: int,
        codes: tuple[int, int],
        tokens: Callable[[Tensor], Segment],
        noise: Noise,
        top_k: int,
        forced: Callable[[int], Sequence[int]] = lambda index: (),
    ) -> None:
        self.total, self.codes = total, codes
        self._tokens, self._noise, self._top_k, self._forced = tokens, noise, top_k, forced
        self.state = torch.zeros(0, dtype=torch.long)
        """Codes so far, from 0 on."""

    def time(self, index: int) -> None:
        return None

    def segments(self, index: int) -> Segment:
        """What forward ``index`` >= 1 appends: the code before, and what is forced after it."""
        ids = torch.cat((self.state[-1:] + self.codes[0], torch.tensor(self._forced(index - 1), dtype=torch.long)))
        return self._tokens(ids)

    def advance(self, prediction: Tensor, index: int) -> None:
        """``prediction``: guided logits [codes]."""
        logits = prediction.float().cpu()
        if self._top_k < len(logits):
            logits = logits.masked_fill(logits < logits.topk(self._top_k).values[-1], -torch.inf)
        p = logits.softmax(-1)
        self.state = torch.cat((self.state, (p / self._noise.exponential(*p.shape)).argmax(-1, keepdim=True)))
