"""What this machine can do at best: a large matrix product in the model's dtype, and a large copy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn import functional

from flashu.evaluation.timing import clock_of, timed

SIDE = {"cuda": 8192, "cpu": 3072}
COPIED = {"cuda": 1 << 31, "cpu": 1 << 28}
BEST_OF = 5


@dataclass(frozen=True)
class Ceiling:
    """``flops`` and ``bytes`` per second; a copy reads and writes, and both count."""

    flops: float
    bytes: float
    side: int
    copied: int


def measure_ceiling(device: torch.device, dtype: torch.dtype) -> Ceiling:
    """The fastest of several calls each, after one that does not count."""
    side, copied = SIDE.get(device.type, SIDE["cpu"]), COPIED.get(device.type, COPIED["cpu"])
    clock = clock_of(device)

    def best(call: Callable[[], object]) -> float:
        call()
        return min(timed(call, clock)[1] for _ in range(BEST_OF))

    with torch.inference_mode():
        a, b = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
        source = torch.zeros(copied, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        product, copy = best(lambda: functional.linear(a, b)), best(lambda: target.copy_(source))
    return Ceiling(2 * side**3 / product, 2 * copied / copy, side, copied)


def highest(ceilings: Sequence[Ceiling]) -> Ceiling:
    """The best rates of measurements of one kind."""
    return replace(ceilings[0], flops=max(c.flops for c in ceilings), bytes=max(c.bytes for c in ceilings))
