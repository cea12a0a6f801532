"""Captions in GenEval's six categories, and captions of whole scenes with and without coordinates.

Everything is written in the plain form the tokenizer's normaliser produces, so "a photo of 3 circles" typed by
a user and "a photo of three circle" written here are the same tokens; see `tokenizer.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import permutations

import numpy as np

from .split import held_phrasings
from .world import MARGIN, NUMBERS, RELATIONS, Kind, Object, Scene, World, holds

TEMPLATES: dict[str, tuple[str, ...]] = {
    "single": (
        "a {s}", "one {s}", "a photo of a {s}", "a photo of one {s}",
        "there is a {s}", "a single {s}", "draw a {s}", "only a {s}",
    ),
    "two": ("{a} and {b}", "a photo of {a} and {b}", "{a} and {b} , both {c}", "there is {a} and {b}"),
    "counting": (
        "{n} {c} {p}", "a photo of {n} {c} {p}", "there are {n} {c} {p}", "draw {n} {c} {p}", "exactly {n} {c} {p}",
    ),
    "colours": (
        "a {c} {s}", "one {c} {s}", "a photo of a {c} {s}", "a {s} that is {c}",
        "there is a {c} {s}", "a single {c} {s}", "draw a {c} {s}", "the {s} is {c}",
    ),
    "position": ("{a} {r} {b}", "a photo of {a} {r} {b}", "{a} is {r} {b}", "there is {a} {r} {b}"),
    "attribution": ("{a} and {b}", "a photo of {a} and {b}", "there is {a} and {b}", "draw {a} and {b}"),
}  # fmt: skip
CATEGORIES = tuple(TEMPLATES)


def longest(world: World) -> int:
    """Tokens of the longest caption: three groups with a relation, or all objects with their cells."""
    return max(20, 5 * world.most - 1)


def plural(noun: str) -> str:
    return noun + ("es" if noun.endswith("s") else "s")


def name(kind: Kind) -> str:
    return f"a {kind[0]} {kind[1]}"


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def phrase(category: str, fact: tuple, template: int) -> str:
    """Words a fact. Facts: single (s), colours (c, s), counting (kind, n), two and attribution (kind, kind),
    position (kind, relation, kind)."""
    text = TEMPLATES[category][template]
    if category == "single":
        return text.format(s=fact[0])
    if category == "colours":
        return text.format(c=fact[0], s=fact[1])
    if category == "counting":
        return text.format(c=fact[0][0], p=plural(fact[0][1]), n=NUMBERS[fact[1]])
    if category == "position":
        return text.format(a=name(fact[0]), r=fact[1], b=name(fact[2]))
    if "{c}" in text:
        return text.format(a=f"a {fact[0][1]}", b=f"a {fact[1][1]}", c=fact[0][0])
    return text.format(a=name(fact[0]), b=name(fact[1]))


def _train_template(category: str, fact: tuple, rng: np.random.Generator) -> int:
    n = len(TEMPLATES[category])
    held = held_phrasings(fact, n) if category in ("single", "colours") else frozenset()
    return int(rng.choice([i for i in range(n) if i not in held]))


def relations(scene: Scene) -> list[tuple[Object, str, Object]]:
    """Every true (a, relation, b) between two objects that their kinds identify."""
    counts = Counter(o.kind for o in scene.objects)
    unique = [o for o in scene.objects if counts[o.kind] == 1]
    margin = MARGIN + scene.world.doubt
    return [(a, r, b) for a, b in permutations(unique, 2) for r in RELATIONS if holds(r, a.centre, b.centre, margin)]


def facts(scene: Scene) -> dict[str, list[tuple]]:
    """The facts of each category that describe this whole scene."""
    objects, kinds = scene.objects, [o.kind for o in scene.objects]
    if len(objects) == 1:
        return {"single": [(objects[0].shape,)], "colours": [kinds[0]]}
    if len(set(kinds)) == 1:
        return {"counting": [(kinds[0], len(kinds))]}
    if len(objects) > 2:
        return {}
    pairs: list[tuple] = [(kinds[0], kinds[1]), (kinds[1], kinds[0])]
    found = {"position": [(a.kind, r, b.kind) for a, r, b in relations(scene)]}
    found["two" if kinds[0][0] == kinds[1][0] else "attribution"] = pairs
    return found


def caption(category: str, scene: Scene, rng: np.random.Generator) -> str:
    """A training caption of this category; the scene must be of it."""
    options = facts(scene)[category]
    fact = options[int(rng.integers(len(options)))]
    return phrase(category, fact, _train_template(category, fact, rng))


def layout(scene: Scene, rng: np.random.Generator) -> str:
    """Training only: every object with its cell, in any order ("red circle 1a , blue square 3c")."""
    parts = [f"{o.colour} {o.shape} {o.cell}" for o in scene.objects]
    return " , ".join(parts[i] for i in rng.permutation(len(parts)))


def placed_relation(scene: Scene, rng: np.random.Generator) -> str:
    """Training only: a relation with one or both cells spelled out, tying the relation words to the coordinates."""
    options = relations(scene)
    a, r, b = options[int(rng.integers(len(options)))]
    first, second = ((True, True), (True, False), (False, True), (False, True))[int(rng.integers(4))]
    words = (name(a.kind), a.cell if first else "", r, name(b.kind), b.cell if second else "")
    return " ".join(w for w in words if w)


def shapes_only(scene: Scene, rng: np.random.Generator) -> str:
    """The shapes without their colours ("a circle and two squares")."""
    counts = list(Counter(o.shape for o in scene.objects).items())
    order = [counts[i] for i in rng.permutation(len(counts))]
    parts = [f"a {s}" if n == 1 else f"{NUMBERS[n]} {plural(s)}" for s, n in order]
    return _listing(parts)


def multi(scene: Scene, rng: np.random.Generator) -> str:
    """All objects, equal ones counted; with up to three kinds sometimes one relation as well."""
    counts = list(Counter(o.kind for o in scene.objects).items())
    order = [counts[i] for i in rng.permutation(len(counts))]
    parts = [name(k) if n == 1 else f"{NUMBERS[n]} {k[0]} {plural(k[1])}" for k, n in order]
    options = relations(scene) if len(parts) == 3 else []
    text = _listing(parts)
    if options and rng.random() < 0.5:
        a, r, b = options[int(rng.integers(len(options)))]
        text += f" , the {a.colour} {a.shape} {r} the {b.colour} {b.shape}"
    return text


def _listing(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else " , ".join(parts[:-1]) + " and " + parts[-1]


_FORMS = {
    "single": {"single": 0.4, "colours": 0.45, "layout": 0.15},
    "pair": {"position": 0.54, "both": 0.19, "placed": 0.16, "layout": 0.06, "shapes": 0.05},
    "count": {"counting": 0.75, "layout": 0.17, "shapes": 0.08},
    "multi": {"multi": 0.55, "layout": 0.38, "shapes": 0.07},
}


def training_caption(
    family: str, scene: Scene, rng: np.random.Generator, forms: Mapping[str, Mapping[str, float]] | None = None
) -> str:
    """A caption of a scene of one of the families of `sampler.py`, in a form drawn from the training mixture, or from
    ``forms`` for the families that are in it."""
    weights = (forms or {}).get(family, _FORMS[family])
    form = _pick_weighted(weights, rng)
    if form == "layout":
        return layout(scene, rng)
    if form == "shapes":
        return shapes_only(scene, rng)
    if form == "multi":
        return multi(scene, rng)
    if form == "placed":
        return placed_relation(scene, rng)
    if form == "both":
        form = "two" if "two" in facts(scene) else "attribution"
    return caption(form, scene, rng)


def _pick_weighted(weights: Mapping[str, float], rng: np.random.Generator) -> str:
    return list(weights)[int(np.searchsorted(np.cumsum(list(weights.values())), rng.random()))]
