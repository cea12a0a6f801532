"""scenes-edit and scenes-edit-hard: instructions about held-out scenes, judged by the exact detector.

An edit is right if the change that was asked for is there and nothing else changed; both parts have a column of their
own. Beside them the baseline of a model that copies the picture: it keeps everything and does nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flashu.evaluation.score_table import ScoreTable
from flashu.evaluation.statistics import ItemScore
from flashu.scenes import edits
from flashu.scenes.benchmark import Seen
from flashu.scenes.edits import EDIT_KINDS, HARD_KINDS, Edit, Verdict, judge
from flashu.scenes.world import SCENES, Scene, World

ASKED, KEPT = "Asked", "Kept"


@dataclass(frozen=True)
class EditSuite:
    """``edits`` of each kind; each has a seed of its own."""

    edits: tuple[Edit, ...]
    seed: int
    kinds: tuple[str, ...]

    @classmethod
    def make(cls, each: int = 100, seed: int = 0, hard: bool = False, world: World = SCENES) -> EditSuite:
        """``each`` edits of each of the five kinds, or of the four of the harder suite."""
        kinds = HARD_KINDS if hard else EDIT_KINDS
        return cls(tuple(e for kind in kinds for e in edits.edits(kind, each, seed, world)), seed, kinds)

    @property
    def texts(self) -> list[str]:
        return [e.text for e in self.edits]

    @property
    def sources(self) -> list[Scene]:
        return [e.source for e in self.edits]

    @property
    def seeds(self) -> list[int]:
        return [self.seed + 200_000 + i for i in range(len(self.edits))]

    def score(self, seen: Sequence[Sequence[Seen]]) -> ScoreTable:
        """Scores of the objects seen in each edited picture, in the order of ``edits``; overall: the mean over the
        kinds."""
        return self._table([judge(e, objects) for e, objects in zip(self.edits, seen, strict=True)])

    def copied(self) -> ScoreTable:
        """What a model gets that gives back the picture as it is."""
        return self._table([judge(e, e.source.objects) for e in self.edits])

    def _table(self, found: Sequence[Verdict]) -> ScoreTable:
        columns: dict[str, list[ItemScore]] = {kind: [] for kind in (*self.kinds, ASKED, KEPT)}
        for number, (edit, verdict) in enumerate(zip(self.edits, found, strict=True)):
            columns[edit.kind].append(ItemScore(number, float(verdict.right)))
            columns[ASKED].append(ItemScore(number, float(verdict.asked)))
            columns[KEPT].append(ItemScore(number, float(verdict.kept)))
        return ScoreTable(columns, self.kinds)
