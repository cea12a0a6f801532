"""What training never sees: held-out pairs of kinds, held-out counts, held-out (fact, phrasing) pairs.

A scene is a test scene when it contains a held-out pair of kinds or shows exactly a held-out number of one
kind; every other scene is a training scene. Both sets are fixed by hashes, so they never change.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import combinations

from .world import SCENES, Kind, Scene, World

Pair = frozenset[Kind]


def _hash(*words: object) -> int:
    return int.from_bytes(hashlib.blake2b(" ".join(map(str, words)).encode(), digest_size=8).digest(), "big")


def _lowest(items: Iterable[tuple], n: int) -> list[tuple]:
    return sorted(items, key=lambda item: _hash("split", *item))[:n]


@cache
def held_pairs(world: World = SCENES) -> frozenset[Pair]:
    """About a seventh of the pairs of different kinds: of one colour 1/5, of one shape 1/8, different in both 3/20."""
    pairs = list(combinations(world.kinds, 2))
    same_colour = [p for p in pairs if p[0][0] == p[1][0]]
    same_shape = [p for p in pairs if p[0][1] == p[1][1]]
    different = [p for p in pairs if p[0][0] != p[1][0] and p[0][1] != p[1][1]]
    groups = ((same_colour, 0.2), (same_shape, 0.125), (different, 0.15))
    return frozenset(frozenset(p) for group, share in groups for p in _lowest(group, round(share * len(group))))


@cache
def held_counts(world: World = SCENES) -> frozenset[tuple[Kind, int]]:
    """3/20 of the (kind, number) facts, as many for each number."""
    n = round(0.15 * len(world.kinds))
    return frozenset(fact for count in world.counts for fact in _lowest([(k, count) for k in world.kinds], n))


@cache
def held_phrasings(fact: tuple[str, ...], phrasings: int) -> frozenset[int]:
    """The quarter of the phrasings of a fact of an exhausted category (single, colours) kept for the test."""
    order = sorted(range(phrasings), key=lambda i: _hash("phrasing", *fact, i))
    return frozenset(order[: phrasings // 4])


def is_test(kinds: Sequence[Kind], world: World = SCENES) -> bool:
    """Whether a scene of these kinds belongs to the test side."""
    if any(frozenset(pair) in held_pairs(world) for pair in combinations(kinds, 2)):
        return True
    return any((kind, n) in held_counts(world) for kind, n in Counter(kinds).items())


def is_test_scene(scene: Scene) -> bool:
    return is_test([o.kind for o in scene.objects], scene.world)


def has_held_pair(scene: Scene) -> bool:
    held = held_pairs(scene.world)
    return any(frozenset((a.kind, b.kind)) in held for a, b in combinations(scene.objects, 2))
