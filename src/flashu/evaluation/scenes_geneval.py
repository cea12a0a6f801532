"""scenes-geneval: GenEval's six categories on test prompts, read by the exact detector (paper Table 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from flashu.evaluation.scores import Mark, Sheet
from flashu.scenes import benchmark
from flashu.scenes.benchmark import CATEGORIES, Prompt, Seen
from flashu.scenes.world import SCENES, World

COLUMNS = {
    "single": "Single Obj.",
    "two": "Two Obj.",
    "counting": "Counting",
    "colours": "Colors",
    "position": "Position",
    "attribution": "Color Attri.",
}
"""The paper's column of each category."""


@dataclass(frozen=True)
class GenEval:
    """``prompts`` of each category, ``images`` of each prompt. Every image has a seed of its own."""

    prompts: tuple[Prompt, ...]
    images: int
    seed: int

    @classmethod
    def make(cls, prompts: int = 100, images: int = 4, seed: int = 0, world: World = SCENES) -> GenEval:
        chosen = [p for category in CATEGORIES for p in benchmark.prompts(category, prompts, seed, world=world)]
        return cls(tuple(chosen), images, seed)

    @property
    def texts(self) -> list[str]:
        return [p.text for p in self.prompts for _ in range(self.images)]

    @property
    def seeds(self) -> list[int]:
        return [self.seed + k for k in range(len(self.prompts) * self.images)]

    def sheet(self, seen: Sequence[Sequence[Seen]]) -> Sheet:
        """Marks from what was seen in each image, in the order of `texts`."""
        judged = zip((p for p in self.prompts for _ in range(self.images)), seen, strict=True)
        marks = [(COLUMNS[p.category], Mark(p.text, float(benchmark.judge(p, objects)))) for p, objects in judged]
        columns = {name: tuple(m for _, m in group) for name, group in groupby(marks, lambda pair: pair[0])}
        return Sheet(columns, tuple(columns))
