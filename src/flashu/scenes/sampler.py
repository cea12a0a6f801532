"""Random scenes: the training mixture in four families, and test scenes around held-out pairs."""

from __future__ import annotations

import numpy as np

from .split import held_pairs, is_test
from .world import SCENES, Kind, Scene, World, place

FAMILIES = ("single", "pair", "count", "multi")


def _kind(world: World, rng: np.random.Generator) -> Kind:
    return world.kinds[int(rng.integers(len(world.kinds)))]


def _other(options: tuple[str, ...], one: str, rng: np.random.Generator) -> str:
    return options[(options.index(one) + int(rng.integers(1, len(options)))) % len(options)]


def _pair(world: World, rng: np.random.Generator) -> list[Kind]:
    """Two different kinds; those that share a colour or a shape are drawn more often than by chance."""
    colour, shape = _kind(world, rng)
    case = rng.random()
    if case < 0.25:
        return [(colour, shape), (colour, _other(world.shapes, shape, rng))]
    if case < 0.45:
        return [(colour, shape), (_other(world.colours, colour, rng), shape)]
    other = _kind(world, rng)
    return [(colour, shape), other] if other != (colour, shape) else _pair(world, rng)


def _fill(kinds: list[Kind], n: int, world: World, rng: np.random.Generator) -> list[Kind]:
    """Adds kinds up to n, often repeating a shape, a colour or a whole kind, so that counts and comparisons vary."""
    while len(kinds) < n:
        colour, shape = kinds[int(rng.integers(len(kinds)))]
        new = _kind(world, rng)
        kinds.append(((colour, new[1]), (new[0], shape), (colour, shape), new, new)[int(rng.integers(5))])
    return kinds


def _draw(family: str, world: World, rng: np.random.Generator) -> list[Kind]:
    if family == "single":
        return [_kind(world, rng)]
    if family == "pair":
        return _pair(world, rng)
    if family == "count":
        return [_kind(world, rng)] * int(rng.choice(world.counts))
    kinds = [_kind(world, rng)]
    if rng.random() < 0.25:  # one shape, or one colour, throughout
        shared, n = int(rng.integers(2)), int(rng.integers(3, world.most + 1))
        parts = (_kind(world, rng) for _ in range(n))
        return [(kinds[0][0], shape) if shared else (colour, kinds[0][1]) for colour, shape in parts]
    return _fill(kinds, int(rng.integers(3, world.most + 1)), world, rng)


def training_scene(family: str, rng: np.random.Generator, world: World = SCENES) -> Scene:
    """A scene of the family without anything held out; half of the pairs lie in one row or one column."""
    while True:
        kinds = _draw(family, world, rng)
        repeated = family == "multi" and len(set(kinds)) == 1  # that is the family "count"
        if not is_test(kinds, world) and not repeated:
            return place(kinds, rng, family == "pair" and rng.random() < 0.5, world)


def held_scene(rng: np.random.Generator, world: World = SCENES) -> Scene:
    """A test scene: a held-out pair and more objects, in two scenes of five as many as there can be."""
    pairs = sorted(sorted(pair) for pair in held_pairs(world))
    kinds = list(pairs[int(rng.integers(len(pairs)))])
    fewer = len(world.counts) - 1
    n = int(rng.choice(world.counts, p=(*[0.6 / fewer] * fewer, 0.4)))
    return place(_fill(kinds, n, world, rng), rng, world=world)
