"""The Pareto frontier of two things to be large."""

from __future__ import annotations

from collections.abc import Sequence


def frontier(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which points no other equals or exceeds in both values, one of them strictly."""
    return [not any(p != own and p[0] >= own[0] and p[1] >= own[1] for p in points) for own in points]
