"""The drawing suites of the scenes worlds, read by the exact detector, in the spirit of the paper's Tables 2 and 3.

scenes-geneval: GenEval's six categories on test prompts. scenes-dpg: dense prompts of three to six facts, scored fact
by fact as in DPG-Bench. They describe held-out scenes of three or more objects in the words of the training captions:
every group of equal objects, and for three groups one relation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, Protocol, TypeVar

import numpy as np

from flashu.evaluation.score_table import ScoreTable
from flashu.evaluation.statistics import ItemScore
from flashu.scenes import benchmark
from flashu.scenes.benchmark import CATEGORIES, Prompt, Seen
from flashu.scenes.captions import name, plural, relations
from flashu.scenes.sampler import held_scene
from flashu.scenes.split import has_held_pair
from flashu.scenes.world import MARGIN, NUMBERS, SCENES, Kind, Scene, World, holds

GENEVAL_COLUMNS = {
    "single": "Single Obj.",
    "two": "Two Obj.",
    "counting": "Counting",
    "colours": "Colors",
    "position": "Position",
    "attribution": "Color Attri.",
}
"""The paper's column of each category."""
DPG_COLUMNS = GLOBAL, ENTITY, ATTRIBUTE, RELATION = ("Global", "Entity", "Attribute", "Relation")
FACTS = "Facts"
Relation = tuple[Kind, str, Kind]


class _Prompt(Protocol):
    @property
    def text(self) -> str: ...


P = TypeVar("P", bound=_Prompt)


@dataclass(frozen=True)
class DrawingSuite(Generic[P]):
    """``images`` of each prompt. Every image has a seed of its own."""

    prompts: tuple[P, ...]
    images: int
    seed: int

    seed_offset: ClassVar[int] = 0

    @property
    def texts(self) -> list[str]:
        return [p.text for p in self._of_images()]

    @property
    def seeds(self) -> list[int]:
        first = self.seed + self.seed_offset
        return list(range(first, first + len(self.prompts) * self.images))

    def _of_images(self) -> Iterator[P]:
        return (p for p in self.prompts for _ in range(self.images))


class GenEvalSuite(DrawingSuite[Prompt]):
    """``prompts`` of each of the six categories."""

    @classmethod
    def make(cls, prompts: int = 100, images: int = 4, seed: int = 0, world: World = SCENES) -> GenEvalSuite:
        chosen = [p for category in CATEGORIES for p in benchmark.prompts(category, prompts, seed, world=world)]
        return cls(tuple(chosen), images, seed)

    def score(self, seen: Sequence[Sequence[Seen]]) -> ScoreTable:
        """Scores of the objects seen in each image, in the order of `texts`."""
        columns: dict[str, list[ItemScore]] = {}
        for prompt, objects in zip(self._of_images(), seen, strict=True):
            right = float(benchmark.judge(prompt, objects))
            columns.setdefault(GENEVAL_COLUMNS[prompt.category], []).append(ItemScore(prompt.text, right))
        return ScoreTable(columns, tuple(columns))


@dataclass(frozen=True)
class DensePrompt:
    """``groups``: (kind, number) in the order named. Facts: the whole, each group, the relation."""

    text: str
    groups: tuple[tuple[Kind, int], ...]
    relation: Relation | None

    @property
    def facts(self) -> int:
        return 1 + len(self.groups) + (self.relation is not None)


class DPGSuite(DrawingSuite[DensePrompt]):
    """Dense prompts."""

    seed_offset = 100_000

    @classmethod
    def make(cls, prompts: int = 100, images: int = 4, seed: int = 0, world: World = SCENES) -> DPGSuite:
        return cls(tuple(dense_prompts(prompts, seed, world)), images, seed)

    def score(self, seen: Sequence[Sequence[Seen]]) -> ScoreTable:
        """Scores of all facts by column; the overall score is the mean over images of the share of their facts."""
        columns: dict[str, list[ItemScore]] = {column: [] for column in (*DPG_COLUMNS, FACTS)}
        for prompt, objects in zip(self._of_images(), seen, strict=True):
            found = facts(prompt, objects)
            for column, ok in found:
                columns[column].append(ItemScore(prompt.text, float(ok)))
            columns[FACTS].append(ItemScore(prompt.text, sum(ok for _, ok in found) / len(found)))
        return ScoreTable({column: items for column, items in columns.items() if items}, (FACTS,))


def dense_prompts(n: int, seed: int, world: World = SCENES) -> list[DensePrompt]:
    """n different prompts about test scenes, two thirds of them with a relation."""
    rng = np.random.default_rng((seed, 200))
    made: dict[str, DensePrompt] = {}
    related = 0
    while len(made) < n:
        scene = held_scene(rng, world)
        if len(scene.objects) < 3 or not has_held_pair(scene):
            continue
        new = dense_prompt(scene, rng)
        wants = related < 2 * n / 3
        if new.facts < 3 or new.text in made or (new.relation is not None) != wants:
            continue
        related += new.relation is not None
        made[new.text] = new
    return list(made.values())


def dense_prompt(scene: Scene, rng: np.random.Generator) -> DensePrompt:
    """A prompt for a scene; three groups also get a relation where one is true, as much as the text may hold."""
    counts = list(Counter(o.kind for o in scene.objects).items())
    groups = tuple(counts[i] for i in rng.permutation(len(counts)))
    parts = [name(kind) if n == 1 else f"{NUMBERS[n]} {kind[0]} {plural(kind[1])}" for kind, n in groups]
    text = parts[0] if len(parts) == 1 else " , ".join(parts[:-1]) + " and " + parts[-1]
    options = relations(scene) if len(groups) == 3 else []
    if not options:
        return DensePrompt(text, groups, None)
    a, r, b = options[int(rng.integers(len(options)))]
    text += f" , the {a.colour} {a.shape} {r} the {b.colour} {b.shape}"
    return DensePrompt(text, groups, (a.kind, r, b.kind))


def facts(prompt: DensePrompt, seen: Sequence[Seen]) -> list[tuple[str, bool]]:
    """(column, holds) of every question the prompt answers.

    Global: nothing but what was named is in the picture. Entity: each shape named is there often enough. Attribute:
    so are the coloured objects; false where the entity is missing, as in DPG-Bench. Relation: it holds between
    objects told apart by shape where the prompt names the shape once, so that a wrong colour is not counted twice.
    """
    shapes, kinds = Counter(o.shape for o in seen), Counter(o.kind for o in seen)
    asked: Counter[str] = Counter()
    for kind, n in prompt.groups:
        asked[kind[1]] += n
    found = [(GLOBAL, len(seen) == asked.total() and set(shapes) <= set(asked))]
    there = {shape: shapes[shape] >= n for shape, n in asked.items()}
    found += [(ENTITY, ok) for ok in there.values()]
    found += [(ATTRIBUTE, there[kind[1]] and kinds[kind] >= n) for kind, n in prompt.groups]
    if prompt.relation is not None:
        a, relation, b = prompt.relation
        firsts, seconds = (
            [o.centre for o in seen if (o.shape == k[1] if asked[k[1]] == 1 else o.kind == k)] for k in (a, b)
        )
        found.append((RELATION, any(holds(relation, x, y, MARGIN) for x in firsts for y in seconds)))
    return found
