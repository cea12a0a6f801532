"""What this machine can do at best: a large matrix product in the model's dtype, and a large copy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from flashu.bench.watch import clock_of
from flashu.models.products import linear

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
    """The best of a few goes each."""
    side, copied = SIDE.get(device.type, SIDE["cpu"]), COPIED.get(device.type, COPIED["cpu"])
    with torch.inference_mode():
        a, b = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
        source = torch.zeros(copied, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        product = best(device, lambda: linear(a, b))
        copy = best(device, lambda: target.copy_(source))
    return Ceiling(2 * side**3 / product, 2 * copied / copy, side, copied)


def highest(ceilings: Sequence[Ceiling]) -> Ceiling:
    """The best rates of measurements alike."""
    return replace(ceilings[0], flops=max(c.flops for c in ceilings), bytes=max(c.bytes for c in ceilings))


def best(device: torch.device, call: Callable[[], object]) -> float:
    """Seconds of the fastest of several calls, after one that does not count."""
    clock = clock_of(device)
    call()
    marks = []
    for _ in range(BEST_OF):
        clock.settle()
        start = clock.now()
        call()
        marks.append((start, clock.now()))
    clock.settle()
    return min(clock.between(start, end) for start, end in marks)
