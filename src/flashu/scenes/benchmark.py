"""The embedded benchmark: test prompts in GenEval's six categories, test questions in six kinds, and the rules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import Literal, Protocol

import numpy as np

from . import questions as ask
from .captions import CATEGORIES, TEMPLATES, phrase
from .questions import QUESTION_KINDS, Question, verdicts
from .sampler import FAMILIES, held_scene, training_scene
from .split import held_counts, held_phrasings, is_test
from .world import MARGIN, RELATIONS, SCENES, Kind, World, holds

__all__ = ["CATEGORIES", "QUESTION_KINDS", "Prompt", "Question", "blind_prior", "judge", "prompts", "questions"]

Split = Literal["train", "test"]


class Seen(Protocol):
    """What `judge` needs to know of an object."""

    @property
    def kind(self) -> Kind: ...
    @property
    def shape(self) -> str: ...
    @property
    def centre(self) -> tuple[float, float]: ...


@dataclass(frozen=True, slots=True)
class Prompt:
    """A test prompt; `fact` is what the image must show (its form by category: `captions.phrase`)."""

    text: str
    category: str
    fact: tuple


def _cases(category: str, split: Split, world: World) -> list[tuple[tuple, int]]:
    """Every (fact, template) of a category on one side of the split."""
    test = split == "test"
    templates = range(len(TEMPLATES[category]))
    if category in ("single", "colours"):
        facts: list[tuple] = [(s,) for s in world.shapes] if category == "single" else list(world.kinds)
        return [(f, t) for f in facts for t in templates if (t in held_phrasings(f, len(templates))) == test]
    if category == "counting":
        facts = [(kind, n) for kind in world.kinds for n in world.counts if ((kind, n) in held_counts(world)) == test]
    else:
        pairs = [p for p in combinations(world.kinds, 2) if is_test(p, world) == test]
        if category == "two":  # told apart by shape alone
            pairs = [p for p in pairs if p[0][0] == p[1][0]]
        elif category == "attribution":  # two shapes, two colours: the words must be bound
            pairs = [p for p in pairs if p[0][0] != p[1][0] and p[0][1] != p[1][1]]
        ordered = [q for p in pairs for q in permutations(p)]
        facts = [(a, r, b) for a, b in ordered for r in RELATIONS] if category == "position" else ordered
    return [(f, t) for f in facts for t in templates]


def prompts(category: str, n: int, seed: int, split: Split = "test", world: World = SCENES) -> list[Prompt]:
    """n prompts; none repeats before all have been used, and facts take turns."""
    rng = np.random.default_rng((seed, CATEGORIES.index(category)))
    by_fact: dict[tuple, list[int]] = {}
    for fact, template in _cases(category, split, world):
        by_fact.setdefault(fact, []).append(template)
    order = list(by_fact)
    made: list[Prompt] = []
    round_ = 0
    wordings = {fact: rng.permutation(options) for fact, options in by_fact.items()}
    while len(made) < n:
        for i in rng.permutation(len(order)):
            template = int(wordings[order[i]][round_ % len(wordings[order[i]])])
            made.append(Prompt(phrase(category, order[i], template), category, order[i]))
        round_ += 1
    return made[:n]


def judge(prompt: Prompt, objects: Sequence[Seen]) -> bool:
    """GenEval's rules: what is named must be there; counting allows nothing else in the picture."""
    kinds = Counter(o.kind for o in objects)
    if prompt.category == "single":
        return any(o.shape == prompt.fact[0] for o in objects)
    if prompt.category == "colours":
        return kinds[prompt.fact] > 0
    if prompt.category == "counting":
        kind, n = prompt.fact
        return kinds[kind] == n == len(objects)
    if prompt.category == "position":
        a, relation, b = prompt.fact
        firsts = [o.centre for o in objects if o.kind == a]
        seconds = [o.centre for o in objects if o.kind == b]
        return any(holds(relation, x, y, MARGIN) for x in firsts for y in seconds)
    return all(kinds[kind] > 0 for kind in prompt.fact)


def questions(kind: str, n: int, seed: int, split: Split = "test", world: World = SCENES) -> list[Question]:
    """n questions of a kind, as evenly spread over its verdicts as n allows, each about a scene of its own."""
    rng = np.random.default_rng((seed, 100 + QUESTION_KINDS.index(kind)))
    options = verdicts(kind, world)
    wants = [options[i % len(options)] for i in range(n)]
    made: list[Question] = []
    for want in wants:
        found = None
        while found is None:
            if split == "test":
                scene = held_scene(rng, world)
            else:
                scene = training_scene(FAMILIES[int(rng.integers(1, 4))], rng, world)
            found = ask.ask(kind, scene, want, rng)
        made.append(found)
    return made


def blind_prior(items: Sequence[Question]) -> float:
    """Share of the questions that the commonest verdict answers."""
    return max(Counter(q.verdict for q in items).values()) / len(items)
