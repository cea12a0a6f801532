"""Questions about a scene in six kinds. Answers are grounded: first the cells of the objects, then "so", the verdict.

"how many circles are there?" -> "1a 2b so two". Every step of the decoding is then one look-up in the image,
which a tiny model can learn; scoring reads the word after "so".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from .captions import plural
from .world import COLUMNS, MARGIN, NUMBERS, RELATIONS, ROWS, Object, Scene, World, holds

QUESTION_KINDS = ("exist", "count", "colour", "shape", "position", "compare")

PHRASES = {
    "exist": ("is there a {x}?", "does the picture show a {x}?", "can you see a {x}?"),
    "count": ("how many {x} are there?", "how many {x} can you see?", "count the {x}."),
    "colour": ("what colour is the {x}?", "which colour is the {x}?", "what is the colour of the {x}?"),
    "shape": ("what shape is the {x} object?", "which shape is {x}?", "what is the shape of the {x} object?"),
    "position": ("is the {x} {r} the {y}?", "is there a {x} {r} the {y}?", "is the {x} placed {r} the {y}?"),
    "more": ("are there more {x} than {y}?", "is the number of {x} larger than of {y}?"),
    "fewer": ("are there fewer {x} than {y}?", "is the number of {x} smaller than of {y}?"),
    "same": ("are there as many {x} as {y}?", "are there equally many {x} and {y}?"),
}
Ask = tuple[str, str]  # question, answer
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Question:
    """One question about one scene with its grounded answer."""

    scene: Scene
    text: str
    answer: str
    verdict: str
    kind: str


def verdicts(kind: str, world: World) -> tuple[str, ...]:
    """The words that can answer a question of this kind."""
    return {"count": world.numbers, "colour": world.colours, "shape": world.shapes}.get(kind, ("yes", "no"))


def longest(world: World) -> int:
    """Tokens of the longest question, its marker, its answer and eos."""
    return 18 + 2 * world.most


def verdict(text: str) -> str | None:
    """The word after the last "so", or None."""
    words = text.lower().split()
    at = len(words) - 1 - words[::-1].index("so") if "so" in words else len(words)
    return words[at + 1].strip(".,!") if at + 1 < len(words) else None


def _cells(objects: Iterable[Object]) -> str:
    return " ".join(o.cell for o in objects) or "none"


def _noun(shape: str | None, colour: str | None) -> str:
    return " ".join(w for w in (colour, shape or "object") if w)


def _targets(scene: Scene) -> list[tuple[str | None, str | None]]:
    """All (shape, colour) descriptions, None standing for any."""
    world = scene.world
    shapes: list[tuple[str | None, str | None]] = [(s, None) for s in world.shapes]
    return shapes + [(None, c) for c in world.colours] + [(s, c) for c, s in world.kinds]


def _choose(options: list[Item], rng: np.random.Generator) -> Item:
    return options[int(rng.integers(len(options)))]


def _wording(kind: str, rng: np.random.Generator, **words: str) -> str:
    return _choose(list(PHRASES[kind]), rng).format(**words)


def _exist(scene: Scene, want: str, rng: np.random.Generator) -> Ask | None:
    present = [t for t in _targets(scene) if scene.matching(*t)]
    if want == "yes":
        target = _choose(present, rng)
    else:
        absent = [t for t in _targets(scene) if not scene.matching(*t)]
        # Half of the absent kinds asked for have both words somewhere in the picture, or nearly.
        near = [t for t in absent if None not in t and ((t[0], None) in present or (None, t[1]) in present)]
        both = [t for t in near if (t[0], None) in present and (None, t[1]) in present]
        target = _choose(_choose([g for g in (absent, near, both) if g], rng), rng)
    found = scene.matching(*target)
    return _wording("exist", rng, x=_noun(*target)), f"{_cells(found)} so {want}"


def _count(scene: Scene, want: str, rng: np.random.Generator) -> Ask | None:
    number = NUMBERS.index(want)
    by_width = [
        [t for t in _targets(scene) if (None in t) == wide and len(scene.matching(*t)) == number]
        for wide in (True, False)
    ]
    options = [group for group in by_width if group]
    if not options:
        return None
    target = _choose(_choose(options, rng), rng)
    return _wording("count", rng, x=plural(_noun(*target))), f"{_cells(scene.matching(*target))} so {want}"


def _colour(scene: Scene, want: str, rng: np.random.Generator) -> Ask | None:
    counts = Counter(o.shape for o in scene.objects)
    options = [o for o in scene.objects if counts[o.shape] == 1 and o.colour == want]
    if not options:
        return None
    found = _choose(options, rng)
    return _wording("colour", rng, x=found.shape), f"{found.cell} so {want}"


def _shape(scene: Scene, want: str, rng: np.random.Generator) -> Ask | None:
    counts = Counter(o.colour for o in scene.objects)
    options = [o for o in scene.objects if counts[o.colour] == 1 and o.shape == want]
    if not options:
        return None
    found = _choose(options, rng)
    return _wording("shape", rng, x=found.colour), f"{found.cell} so {want}"


def _position(scene: Scene, want: str, rng: np.random.Generator) -> Ask | None:
    counts = Counter(o.kind for o in scene.objects)
    unique = [o for o in scene.objects if counts[o.kind] == 1]
    if len(unique) < 2:
        return None
    i, j = rng.permutation(len(unique))[:2]
    a, b = unique[i], unique[j]
    margin = MARGIN + (scene.world.doubt if want == "yes" else -scene.world.doubt)
    options = [r for r in RELATIONS if holds(r, a.centre, b.centre, margin) == (want == "yes")]
    if not options:
        return None
    words = {"x": _noun(a.shape, a.colour), "y": _noun(b.shape, b.colour), "r": _choose(options, rng)}
    return _wording("position", rng, **words), f"{a.cell} {b.cell} so {want}"


def _compare(scene: Scene, want: str, rng: np.random.Generator) -> Ask | None:
    shapes = rng.random() < 0.5
    values = list(rng.permutation(scene.world.shapes if shapes else scene.world.colours))
    values.sort(key=lambda v: -len(scene.matching(v, None) if shapes else scene.matching(None, v)))
    pool = values[:3]  # mostly what is there, so that one side is not always empty
    i, j = rng.permutation(len(pool))[:2]
    x, y = ((str(pool[k]), None) if shapes else (None, str(pool[k])) for k in (i, j))
    found_x, found_y = scene.matching(*x), scene.matching(*y)
    excess = len(found_x) - len(found_y)
    truth = {"more": excess > 0, "fewer": excess < 0, "same": excess == 0}
    form = _choose(list(truth), rng)
    if truth[form] != (want == "yes"):
        return None
    return (
        _wording(form, rng, x=plural(_noun(*x)), y=plural(_noun(*y))),
        f"{_cells(found_x)} versus {_cells(found_y)} so {want}",
    )


_ASK = {
    "exist": _exist,
    "count": _count,
    "colour": _colour,
    "shape": _shape,
    "position": _position,
    "compare": _compare,
}


def ask(kind: str, scene: Scene, want: str, rng: np.random.Generator) -> Question | None:
    """A question of this kind whose verdict is `want`, or None where the scene allows none (or by chance)."""
    made = _ASK[kind](scene, want, rng)
    return Question(scene, made[0], made[1], want, kind) if made else None


def describe(scene: Scene) -> Ask:
    """Training only: every object with its cell, in reading order."""
    return "describe the picture.", " ".join(f"{o.cell} {o.colour} {o.shape}" for o in scene.objects)


def describe_cells(scene: Scene) -> Ask:
    """Every cell in reading order with what is in it: 3 tokens each, 4 where there is an object."""
    there = {o.cell: f"{o.colour} {o.shape}" for o in scene.objects}
    cells = [row + column for row in ROWS[: scene.world.side] for column in COLUMNS[: scene.world.side]]
    return "describe every cell.", " ".join(f"{cell} {there.get(cell, 'none')}" for cell in cells)
