"""How many evaluations a sampler will make, from the times it has asked for so far."""

from __future__ import annotations

from collections.abc import Sequence

SHIFT = 3.0
DEMO = 49
"""Evaluations of the original's demo: 50 time points."""


def evaluations(times: Sequence[float], guess: int = DEMO) -> int:
    """Evaluations of a shifted grid t = u / (u + s - s u), u = 0, 1/n, 2/n, ... of which ``times`` are the first.

    One time tells nothing: ``guess``. Two give n for the usual shift, s = 3. Three give both n and s, because
    1/t = 1 - s + s n / k at the k-th point. A grid that does not start at 0 or is of another kind: ``guess``.
    """
    seen = len(times)
    if seen < 2 or times[0] != 0:
        return max(guess, seen)
    inverse = 1 / times[1]
    if seen == 2:
        count = (inverse - 1) / SHIFT + 1
    else:
        shifted = 2 * (inverse - 1 / times[2])
        shift = 1 + shifted - inverse
        if shift <= 0:
            return max(guess, seen)
        count = shifted / shift
    near = round(count)
    return max(near if abs(count - near) < 0.1 else guess, seen)
