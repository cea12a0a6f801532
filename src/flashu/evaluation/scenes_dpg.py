"""scenes-dpg: dense prompts of three to six facts, scored fact by fact as in DPG-Bench (paper Table 3).

The prompts describe held-out scenes of three or more objects in the words of the training captions: every group of
equal objects, and for three groups one relation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flashu.evaluation.scores import Mark, Sheet
from flashu.scenes.benchmark import Seen
from flashu.scenes.captions import name, plural, relations
from flashu.scenes.sampler import held_scene
from flashu.scenes.split import has_held_pair
from flashu.scenes.world import MARGIN, NUMBERS, SCENES, Kind, Scene, World, holds

COLUMNS = ("Global", "Entity", "Attribute", "Relation")
Relation = tuple[Kind, str, Kind]


@dataclass(frozen=True)
class Dense:
    """``groups``: (kind, number) in the order named. Facts: the whole, each group, the relation."""

    text: str
    groups: tuple[tuple[Kind, int], ...]
    relation: Relation | None

    @property
    def facts(self) -> int:
        return 1 + len(self.groups) + (self.relation is not None)


def dense(scene: Scene, rng: np.random.Generator) -> Dense:
    """A prompt for a scene; three groups also get a relation where one is true, as much as the text may hold."""
    counts = list(Counter(o.kind for o in scene.objects).items())
    groups = tuple(counts[i] for i in rng.permutation(len(counts)))
    parts = [name(kind) if n == 1 else f"{NUMBERS[n]} {kind[0]} {plural(kind[1])}" for kind, n in groups]
    text = parts[0] if len(parts) == 1 else " , ".join(parts[:-1]) + " and " + parts[-1]
    options = relations(scene) if len(groups) == 3 else []
    if not options:
        return Dense(text, groups, None)
    a, r, b = options[int(rng.integers(len(options)))]
    text += f" , the {a.colour} {a.shape} {r} the {b.colour} {b.shape}"
    return Dense(text, groups, (a.kind, r, b.kind))


def prompts(n: int, seed: int, world: World = SCENES) -> list[Dense]:
    """n different prompts about test scenes, two thirds of them with a relation."""
    rng = np.random.default_rng((seed, 200))
    made: dict[str, Dense] = {}
    related = 0
    while len(made) < n:
        scene = held_scene(rng, world)
        if len(scene.objects) < 3 or not has_held_pair(scene):
            continue
        new = dense(scene, rng)
        wants = related < 2 * n / 3
        if new.facts < 3 or new.text in made or (new.relation is not None) != wants:
            continue
        related += new.relation is not None
        made[new.text] = new
    return list(made.values())


def facts(prompt: Dense, seen: Sequence[Seen]) -> list[tuple[str, bool]]:
    """(column, holds) of every question the prompt answers.

    Global: nothing but what was named is in the picture. Entity: each shape named is there often enough. Attribute:
    so are the coloured objects; false where the entity is missing, as in DPG-Bench. Relation: it holds between
    objects told apart by shape where the prompt names the shape once, so that a wrong colour is not counted twice.
    """
    shapes, kinds = Counter(o.shape for o in seen), Counter(o.kind for o in seen)
    asked: Counter[str] = Counter()
    for kind, n in prompt.groups:
        asked[kind[1]] += n
    found = [("Global", len(seen) == asked.total() and set(shapes) <= set(asked))]
    there = {shape: shapes[shape] >= n for shape, n in asked.items()}
    found += [("Entity", ok) for ok in there.values()]
    found += [("Attribute", there[kind[1]] and kinds[kind] >= n) for kind, n in prompt.groups]
    if prompt.relation is not None:
        a, relation, b = prompt.relation
        firsts, seconds = (
            [o.centre for o in seen if (o.shape == k[1] if asked[k[1]] == 1 else o.kind == k)] for k in (a, b)
        )
        found.append(("Relation", any(holds(relation, x, y, MARGIN) for x in firsts for y in seconds)))
    return found


@dataclass(frozen=True)
class DPG:
    """Dense prompts, ``images`` of each."""

    prompts: tuple[Dense, ...]
    images: int
    seed: int

    @classmethod
    def make(cls, prompts_: int = 100, images: int = 4, seed: int = 0, world: World = SCENES) -> DPG:
        return cls(tuple(prompts(prompts_, seed, world)), images, seed)

    @property
    def texts(self) -> list[str]:
        return [p.text for p in self.prompts for _ in range(self.images)]

    @property
    def seeds(self) -> list[int]:
        first = self.seed + 100_000
        return [first + k for k in range(len(self.prompts) * self.images)]

    def sheet(self, seen: Sequence[Sequence[Seen]]) -> Sheet:
        """Marks of all facts by column; the overall score is the mean over images of the share of their facts."""
        marks: dict[str, list[Mark]] = {column: [] for column in COLUMNS}
        whole: list[Mark] = []
        for prompt, objects in zip((p for p in self.prompts for _ in range(self.images)), seen, strict=True):
            found = facts(prompt, objects)
            for column, ok in found:
                marks[column].append(Mark(prompt.text, float(ok)))
            whole.append(Mark(prompt.text, sum(ok for _, ok in found) / len(found)))
        return Sheet({c: m for c, m in marks.items() if m} | {"Facts": whole}, ("Facts",))
