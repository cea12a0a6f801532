"""Drawing one image token after another."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from flashu.inference.samplers.noise import Noise
from flashu.runtime.layout import Segment
from flashu.runtime.request import Want

UNDRAWN = -1


class AutoregressiveSampler:
    """Image tokens from ``codes``, a range of the vocabulary, in the order of ``shape``. ``tokens``: ids -> the segment
    that appends them. ``forced``: index of a code -> ids that follow it and need no forward of their own (an end of
    line). ``top_k``: sample among so many, 1 = greedy, without noise. Everything stays on the model's device: choosing
    a code waits for nothing."""

    kind: Literal["block", "token"] = "token"
    want: Want = "logits"

    def __init__(
        self,
        shape: tuple[int, ...],
        codes: tuple[int, int],
        tokens: Callable[[Tensor], Segment],
        noise: Noise,
        top_k: int,
        forced: Callable[[int], Sequence[int]] = lambda index: (),
    ) -> None:
        self.total, self.codes = math.prod(shape), codes
        self._tokens, self._noise, self._top_k = tokens, noise, top_k
        self._forced = [tuple(forced(index)) for index in range(self.total)]
        # Tokens that have been fed before each forward; nothing follows the last code.
        self._fed = [0, *accumulate((1 + len(ids) for ids in self._forced[:-1]), initial=0)]
        self.state = torch.full(shape, UNDRAWN)
        """Codes [*shape], from 0 on; -1 are not drawn yet."""

    def time(self, index: int) -> None:
        return None

    def space(self, index: int) -> int:
        return self._fed[-1] - self._fed[index]

    def segments(self, index: int) -> Segment:
        """What forward ``index`` >= 1 appends: the code before, and what is forced after it."""
        code = self.state.view(-1)[index - 1 : index] + self.codes[0]
        forced = self._forced[index - 1]
        return self._tokens(torch.cat((code, code.new_tensor(forced))) if forced else code)

    def advance(self, prediction: Tensor, index: int) -> None:
        """``prediction``: guided logits [codes]."""
        logits = prediction.float()
        if 1 < self._top_k < len(logits):
            logits = logits.masked_fill(logits < logits.topk(self._top_k).values[-1], -torch.inf)
        if self._top_k > 1:
            logits = logits.softmax(-1) / self._noise.exponential(len(logits)).to(logits.device)
        drawn = self.state.to(logits.device, copy=True)
        drawn.view(-1)[index] = logits.argmax(-1)
        self.state = drawn
