"""What a run remembers of its forwards: features of the drawing head, similarities that probes have measured."""

from __future__ import annotations

from math import factorial

import torch
from torch import Tensor

HISTORY = 3
"""Head features kept: as many as a polynomial of order two needs."""


class SharedObservations:
    """What probes have measured, for one run, or for several that go in step and share one layer-skipping list."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """What comes next is another text or drawing, of which nothing is known."""
        self._index = -1
        self._similarities: list[tuple[float, ...]] = []

    def note(self, index: int, similarity: tuple[float, ...]) -> None:
        """The probe of one run at forward ``index``."""
        if index != self._index:
            self._index, self._similarities = index, []
        self._similarities.append(similarity)

    @property
    def similarity(self) -> tuple[float, ...] | None:
        """The latest probe's, the mean over the runs."""
        if not self._similarities:
            return None
        count = len(self._similarities)
        return tuple(sum(values) / count for values in zip(*self._similarities, strict=True))


class FeatureHistory:
    """The head's latest features of each branch [N, d], the forwards they are of, and their differences."""

    def __init__(self) -> None:
        self._kept: dict[str, list[tuple[int, Tensor]]] = {}
        self._differences: dict[str, list[Tensor]] = {}

    @property
    def branches(self) -> tuple[str, ...]:
        """Those that the latest features are of."""
        latest = max((kept[-1][0] for kept in self._kept.values()), default=0)
        return tuple(name for name, kept in self._kept.items() if kept[-1][0] == latest)

    def keep(self, index: int, branches: tuple[str, ...], features: Tensor, order: int | None = None) -> None:
        """Features [branches, N, d] of forward ``index``. ``order``: see `Plan.differences`."""
        for name, own in zip(branches, features, strict=True):
            before = self._kept.get(name, [])
            if order is not None:
                known, grown = self._differences.get(name, []), [own]
                for n in range(min(order, len(known))):
                    grown.append((grown[n] - known[n]) / (index - before[-1][0]))
                self._differences[name] = grown
            self._kept[name] = [*before, (index, own)][-HISTORY:]

    def at(self, index: int, order: int, branches: tuple[str, ...]) -> Tensor:
        """Features [branches, N, d] for forward ``index``: by Taylor's series where differences were kept; else the
        latest, or continued by a polynomial through as many as ``order`` asks for and there are."""
        return torch.stack([self._at(index, order, name) for name in branches])

    def _at(self, index: int, order: int, name: str) -> Tensor:
        (at, last), *earlier = reversed(self._kept[name])
        ahead = index - at
        if name in self._differences:
            terms = enumerate(self._differences[name])
            return sum((d * (ahead**n / factorial(n)) for n, d in terms), torch.zeros_like(last))
        if not order or not earlier or not ahead:
            return last
        slope = (last - earlier[0][1]) / (at - earlier[0][0])
        continued = last + ahead * slope
        if order == 1 or len(earlier) == 1:
            return continued
        before = (earlier[0][1] - earlier[1][1]) / (earlier[0][0] - earlier[1][0])
        return continued + ahead**2 * (slope - before) / (at - earlier[1][0])
