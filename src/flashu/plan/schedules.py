"""Shares of tokens to keep, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Sequence


def last_half(layers: int) -> list[int]:
    """The layers of the second half."""
    return list(range(layers - layers // 2, layers))


def level(layers: Sequence[int], keep: float) -> dict[int, float]:
    """The same share in each of the layers."""
    return dict.fromkeys(layers, keep)


def ramp(layers: Sequence[int], first: float = 1.0, last: float = 0.2) -> dict[int, float]:
    """Shares that fall linearly over the layers, both ends included."""
    fall, steps = first - last, max(len(layers) - 1, 1)
    return {layer: first - fall * n / steps for n, layer in enumerate(layers)}


def cosine(layers: Sequence[int], average: float) -> dict[int, float]:
    """p-MoD's shares: half a cosine around the average, each cut to (0, 1]."""
    steps = max(len(layers) - 1, 1)
    raw = (average + 0.5 * math.cos(math.pi * n / steps) for n in range(len(layers)))
    return {layer: min(1.0, max(0.01, share)) for layer, share in zip(layers, raw, strict=True)}
