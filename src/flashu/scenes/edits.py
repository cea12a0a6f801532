"""Edits of a scene: what is said, what the picture must then show, and the judge of a picture that was edited.

Five kinds, and a harder suite of four: wordings that training never sees, objects told apart by their place or by a
relation, and two changes at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .benchmark import Seen
from .detector import NEAR
from .sampler import held_scene
from .split import has_held_pair, is_test_scene
from .world import CELL, COLUMNS, MARGIN, RELATIONS, ROWS, SCENES, Object, Scene, World, holds, named

TEMPLATES: dict[str, tuple[str, ...]] = {
    "recolour": ("make the {x} {c}", "change the {x} to {c}", "let the {x} be {c}", "turn the {x} {c}"),
    "reshape": ("make the {x} a {s}", "turn the {x} into a {s}", "let the {x} be a {s}", "change the {x} to a {s}"),
    "remove": ("remove the {x}", "delete the {x}", "take away the {x}", "take the {x} away"),
    "add": ("add a {y} at {p}", "put a {y} at {p}", "draw a {y} at {p}", "at {p} add a {y}"),
    "move": ("move the {x} to {p}", "put the {x} at {p}", "take the {x} to {p}", "let the {x} be at {p}"),
}
"""Of each kind; the last one is held out, and its words occur in others."""
EDIT_KINDS = tuple(TEMPLATES)
HARD_KINDS = ("wording", "place", "relation", "double")
LONGEST = 20
"""Tokens of the longest instruction."""
REFERENCES = ("kind", "place", "relation")


@dataclass(frozen=True, slots=True)
class Change:
    """One object instead of another: ``old`` None adds, ``new`` None removes."""

    kind: str
    old: Object | None
    new: Object | None


@dataclass(frozen=True, slots=True)
class Edit:
    """``kind``: of `EDIT_KINDS` or `HARD_KINDS`."""

    source: Scene
    text: str
    target: Scene
    kind: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the change that was asked for is there, and whether everything else is as it was, and nothing more."""

    asked: bool
    kept: bool

    @property
    def right(self) -> bool:
        return self.asked and self.kept


def judge(edit: Edit, seen: Sequence[Seen]) -> Verdict:
    """``seen``: the objects of the edited picture. A thing belongs to the change if it is where an object changes."""
    before, after = set(edit.source.objects), set(edit.target.objects)
    changed = before ^ after
    there = [any(_distance(thing, o) < CELL / 2 for o in changed) for thing in seen]
    asked = _agree([thing for thing, inside in zip(seen, there, strict=True) if inside], after - before)
    kept = _agree([thing for thing, inside in zip(seen, there, strict=True) if not inside], before & after)
    return Verdict(asked, kept)


def edits(kind: str, n: int, seed: int, world: World = SCENES) -> list[Edit]:
    """n test edits: of scenes with a held-out pair, an instruction no two times to one scene."""
    hard = kind in HARD_KINDS
    rng = np.random.default_rng((seed, 300 + (*EDIT_KINDS, *HARD_KINDS).index(kind)))
    made: list[Edit] = []
    while len(made) < n:
        scene = held_scene(rng, world)
        if not has_held_pair(scene):
            continue
        of = EDIT_KINDS[len(made) % len(EDIT_KINDS)] if hard else kind
        found = hard_edit(kind, of, scene, rng) if hard else _single(of, scene, "kind", _known(rng), rng)
        if found is not None:
            made.append(replace(found, kind=kind))
    return made


def training_edit(scene: Scene, rng: np.random.Generator) -> Edit | None:
    """An edit of a training scene to a training scene, or None where chance finds none."""
    kind = EDIT_KINDS[int(rng.integers(len(EDIT_KINDS)))]
    if rng.random() < 0.2:
        made = _double(kind, scene, _known(rng), rng)
    else:
        reference = REFERENCES[int(rng.choice(3, p=(0.5, 0.2, 0.3)))]
        made = _single(kind, scene, reference, _known(rng), rng, reference != "kind" and rng.random() < 0.6)
    return None if made is None or is_test_scene(made.target) else made


def hard_edit(kind: str, of: str, scene: Scene, rng: np.random.Generator) -> Edit | None:
    """A test edit of a kind of the harder suite; ``of``: what is to change."""
    if kind == "wording":
        return _single(of, scene, "kind", len(TEMPLATES[of]) - 1, rng)
    if kind == "double":
        return _double(of, scene, _known(rng), rng)
    of = "recolour" if of == "add" else of  # what is added is not told apart from anything
    return _single(of, scene, kind, _known(rng), rng, among_equals=True)


def _known(rng: np.random.Generator) -> int:
    return int(rng.integers(3))


def _single(
    kind: str, scene: Scene, reference: str, template: int, rng: np.random.Generator, among_equals: bool = False
) -> Edit | None:
    change = _change(kind, scene, rng, among_equals)
    text = change and _words(change, scene, reference, template, rng)
    return Edit(scene, text, _applied(scene, (change,)), kind) if change and text else None


def _double(kind: str, scene: Scene, template: int, rng: np.random.Generator) -> Edit | None:
    """Two changes of different objects, in words that hold for the first picture."""
    first = _change(kind, scene, rng)
    if first is None:
        return None
    between = _applied(scene, (first,))
    second = _change(EDIT_KINDS[int(rng.integers(len(EDIT_KINDS)))], between, rng)
    if second is None or (second.old is not None and second.old not in scene.objects):
        return None
    if second.new is not None and first.old is not None and _distance(second.new, first.old) < CELL:
        return None  # no place is freed and taken at once
    texts = [_words(c, scene, "kind", t, rng) for c, t in ((first, template), (second, _known(rng)))]
    target = _applied(scene, (first, second))
    return Edit(scene, " and ".join(texts), target, "double") if texts[0] and texts[1] and target.objects else None


def _change(kind: str, scene: Scene, rng: np.random.Generator, among_equals: bool = False) -> Change | None:
    world, objects = scene.world, list(scene.objects)
    if among_equals:
        counts = Counter(o.kind for o in objects)
        objects = [o for o in objects if counts[o.kind] > 1]
    if kind == "add":
        place = _free(scene, rng)
        if len(scene.objects) >= world.most or place is None:
            return None
        colour, shape = world.kinds[int(rng.integers(len(world.kinds)))]
        return Change(kind, None, replace(place, colour=colour, shape=shape))
    if not objects or (kind == "remove" and len(scene.objects) < 2):
        return None
    old = objects[int(rng.integers(len(objects)))]
    if kind == "remove":
        return Change(kind, old, None)
    if kind == "move":
        place = _free(scene, rng)
        return Change(kind, old, replace(place, colour=old.colour, shape=old.shape)) if place else None
    if kind == "recolour":
        return Change(kind, old, replace(old, colour=_other(world.colours, old.colour, rng)))
    return Change(kind, old, replace(old, shape=_other(world.shapes, old.shape, rng)))


def _other(options: Sequence[str], one: str, rng: np.random.Generator) -> str:
    others = [o for o in options if o != one]
    return others[int(rng.integers(len(others)))]


def _free(scene: Scene, rng: np.random.Generator) -> Object | None:
    """A thing in the middle of a cell, or nearly, as far from the others as objects are."""
    world = scene.world
    cells = [(r, c) for r in range(world.side) for c in range(world.side)]
    middle = [(c * CELL + CELL / 2, r * CELL + CELL / 2) for r, c in cells]
    apart = world.apart - 2 * world.jitter
    free = [
        cell
        for cell, (x, y) in zip(cells, middle, strict=True)
        if all(max(abs(x - o.centre[0]), abs(y - o.centre[1])) >= apart for o in scene.objects)
    ]
    if not free:
        return None
    row, column = free[int(rng.integers(len(free)))]
    dx, dy = rng.uniform(-world.jitter, world.jitter, 2)
    return Object(row, column, "", "", float(dx), float(dy))


def _applied(scene: Scene, changes: Sequence[Change]) -> Scene:
    gone = {c.old for c in changes}
    left = [o for o in scene.objects if o not in gone]
    return Scene(tuple(sorted([*left, *(c.new for c in changes if c.new is not None)])), scene.world)


def _words(change: Change, scene: Scene, reference: str, template: int, rng: np.random.Generator) -> str:
    """The instruction, or "" where this reference does not single the object out."""
    new, old = change.new, change.old
    words = {}
    if new is not None:
        row, column = named(new.centre)
        words = {"c": new.colour, "s": new.shape, "y": f"{new.colour} {new.shape}", "p": ROWS[row] + COLUMNS[column]}
    if old is not None:
        words["x"] = _reference(old, scene, reference, rng)
        if not words["x"]:
            return ""
    return TEMPLATES[change.kind][template].format(**words)


def _reference(thing: Object, scene: Scene, reference: str, rng: np.random.Generator) -> str:
    noun = f"{thing.colour} {thing.shape}"
    equal = [o for o in scene.objects if o.kind == thing.kind]
    if reference == "place":
        return f"{noun} at {thing.cell}"
    if reference == "kind":
        return noun if len(equal) == 1 else ""
    counts = Counter(o.kind for o in scene.objects)
    others = [o for o in equal if o != thing]
    margin, doubt = MARGIN, scene.world.doubt
    options = [
        (r, mark)
        for mark in scene.objects
        if counts[mark.kind] == 1 and mark != thing
        for r in RELATIONS
        if holds(r, thing.centre, mark.centre, margin + doubt)
        and not any(holds(r, o.centre, mark.centre, margin - doubt) for o in others)
    ]
    if not options:
        return ""
    relation, mark = options[int(rng.integers(len(options)))]
    return f"{noun} {relation} the {mark.colour} {mark.shape}"


def _distance(a: Seen, b: Seen) -> float:
    return float(np.hypot(*np.subtract(a.centre, b.centre)))


def _agree(seen: Sequence[Seen], real: set[Object]) -> bool:
    """Whether exactly these objects were seen, each near its place."""
    left = list(seen)
    for o in real:
        found = next((thing for thing in left if thing.kind == o.kind and _distance(thing, o) < NEAR), None)
        if found is None:
            return False
        left.remove(found)
    return not left
