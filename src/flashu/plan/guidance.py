"""Guidance: which branches steer a drawing, and how their predictions combine. No torch: plain arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flashu.plan.plan import MAIN

Formula = Callable[[Mapping[str, Any], Mapping[str, float]], Any]
"""(predictions by branch, scales by branch) -> the guided prediction."""


def classifier_free(predictions: Mapping[str, Any], scales: Mapping[str, float]) -> Any:
    """u + s (v - u), branch after branch (Ho and Salimans 2022)."""
    guided = predictions[MAIN]
    for name, scale in scales.items():
        guided = predictions[name] + scale * (guided - predictions[name])
    return guided


@dataclass(frozen=True)
class Guidance:
    """``scales``: by branch, {} = none. ``interval``: (after, until) flow times that guide, None = all of them."""

    scales: Mapping[str, float] = field(default_factory=dict)
    interval: tuple[float, float] | None = None
    formula: Formula = classifier_free

    def at(self, time: float | None) -> Mapping[str, float]:
        """The scales of a forward at ``time``."""
        if self.interval is None or time is None or self.interval[0] < time <= self.interval[1]:
            return self.scales
        return {}
