"""FLOPs counted from the operators that a run dispatches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def attention(q: Sequence[int], k: Sequence[int], v: Sequence[int], *_: Any, **__: Any) -> int:
    """Scores and weighted sum of q [B, H, S, d] over k, v [B, H', T, d]."""
    return 2 * q[0] * q[1] * q[2] * k[2] * (q[3] + v[3])


def product(x: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
    """x [..., in] times weight [out, in] transposed."""
    return 2 * math.prod(x) * weight[0]


# Of the CPU's own kernels torch counts neither attention nor oneDNN's products.
CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention,
    torch.ops.mkldnn._linear_pointwise: product,
}


class FlopClock:
    """A clock that reads FLOPs; use inside `counting`."""

    def __init__(self) -> None:
        self.counter = FlopCounterMode(display=False, custom_mapping=CPU)

    def now(self) -> float:
        return float(self.counter.get_total_flops())

    def between(self, start: float, end: float) -> float:
        return end - start

    def settle(self) -> None:
        pass


@contextmanager
def counting(clock: FlopClock) -> Iterator[None]:
    with clock.counter:
        yield
