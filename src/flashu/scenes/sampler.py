"""Random scenes: the training mixture in four families, and test scenes around held-out pairs."""

from __future__ import annotations

import numpy as np

from .split import COUNTS, KINDS, held_pairs, is_test
from .world import COLOURS, SHAPES, Kind, Scene, place

FAMILIES = ("single", "pair", "count", "multi")


def _kind(rng: np.random.Generator) -> Kind:
    return KINDS[int(rng.integers(len(KINDS)))]


def _pair(rng: np.random.Generator) -> list[Kind]:
    """Two different kinds; those that share a colour or a shape are drawn more often than by chance."""
    colour, shape = _kind(rng)
    case = rng.random()
    if case < 0.25:
        return [(colour, shape), (colour, SHAPES[(SHAPES.index(shape) + int(rng.integers(1, 4))) % 4])]
    if case < 0.45:
        return [(colour, shape), (COLOURS[(COLOURS.index(colour) + int(rng.integers(1, 5))) % 5], shape)]
    other = _kind(rng)
    return [(colour, shape), other] if other != (colour, shape) else _pair(rng)


def _fill(kinds: list[Kind], n: int, rng: np.random.Generator) -> list[Kind]:
    """Adds kinds up to n, often repeating a shape, a colour or a whole kind, so that counts and comparisons vary."""
    while len(kinds) < n:
        colour, shape = kinds[int(rng.integers(len(kinds)))]
        new = _kind(rng)
        kinds.append(((colour, new[1]), (new[0], shape), (colour, shape), new, new)[int(rng.integers(5))])
    return kinds


def _draw(family: str, rng: np.random.Generator) -> list[Kind]:
    if family == "single":
        return [_kind(rng)]
    if family == "pair":
        return _pair(rng)
    if family == "count":
        return [_kind(rng)] * int(rng.choice(COUNTS))
    kinds = [_kind(rng)]
    if rng.random() < 0.25:  # one shape, or one colour, throughout
        shared, n = int(rng.integers(2)), int(rng.integers(3, 5))
        return [(kinds[0][0], _kind(rng)[1]) if shared else (_kind(rng)[0], kinds[0][1]) for _ in range(n)]
    return _fill(kinds, int(rng.integers(3, 5)), rng)


def training_scene(family: str, rng: np.random.Generator) -> Scene:
    """A scene of the family without anything held out; half of the pairs lie in one row or one column."""
    while True:
        kinds = _draw(family, rng)
        repeated = family == "multi" and len(set(kinds)) == 1  # that is the family "count"
        if not is_test(kinds) and not repeated:
            return place(kinds, rng, aligned=family == "pair" and rng.random() < 0.5)


def held_scene(rng: np.random.Generator) -> Scene:
    """A test scene: a held-out pair and up to two more objects."""
    pairs = sorted(sorted(pair) for pair in held_pairs())
    kinds = list(pairs[int(rng.integers(len(pairs)))])
    return place(_fill(kinds, int(rng.choice((2, 3, 4), p=(0.3, 0.3, 0.4))), rng), rng)
