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

from .world import COLOURS, SHAPES, Kind, Scene

KINDS: tuple[Kind, ...] = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
COUNTS = (2, 3, 4)
Pair = frozenset[Kind]


def _hash(*words: object) -> int:
    return int.from_bytes(hashlib.blake2b(" ".join(map(str, words)).encode(), digest_size=8).digest(), "big")


def _lowest(items: Iterable[tuple], n: int) -> list[tuple]:
    return sorted(items, key=lambda item: _hash("split", *item))[:n]


@cache
def held_pairs() -> frozenset[Pair]:
    """29 of the 190 pairs of different kinds: of one colour 6/30, of one shape 5/40, different in both 18/120."""
    pairs = list(combinations(KINDS, 2))
    same_colour = [p for p in pairs if p[0][0] == p[1][0]]
    same_shape = [p for p in pairs if p[0][1] == p[1][1]]
    different = [p for p in pairs if p[0][0] != p[1][0] and p[0][1] != p[1][1]]
    chosen = _lowest(same_colour, 6) + _lowest(same_shape, 5) + _lowest(different, 18)
    return frozenset(frozenset(p) for p in chosen)


@cache
def held_counts() -> frozenset[tuple[Kind, int]]:
    """9 of the 60 (kind, number) facts, three for each number."""
    return frozenset(fact for n in COUNTS for fact in _lowest([(kind, n) for kind in KINDS], 3))


@cache
def held_phrasings(fact: tuple[str, ...], phrasings: int) -> frozenset[int]:
    """The quarter of the phrasings of a fact of an exhausted category (single, colours) kept for the test."""
    order = sorted(range(phrasings), key=lambda i: _hash("phrasing", *fact, i))
    return frozenset(order[: phrasings // 4])


def is_test(kinds: Sequence[Kind]) -> bool:
    """Whether a scene of these kinds belongs to the test side."""
    if any(frozenset(pair) in held_pairs() for pair in combinations(kinds, 2)):
        return True
    return any((kind, n) in held_counts() for kind, n in Counter(kinds).items())


def is_test_scene(scene: Scene) -> bool:
    return is_test([o.kind for o in scene.objects])


def has_held_pair(scene: Scene) -> bool:
    return any(frozenset((a.kind, b.kind)) in held_pairs() for a, b in combinations(scene.objects, 2))
