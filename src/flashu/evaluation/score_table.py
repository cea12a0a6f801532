"""The item scores of one recipe on one benchmark, as columns that can be compared with another recipe's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flashu.evaluation.statistics import Difference, ItemScore, Score, difference, mean_score


@dataclass(frozen=True)
class ScoreTable:
    """Item scores by column, in an order that every recipe shares. ``mean_of``: the columns whose mean is the overall
    score, each counting alike."""

    columns: Mapping[str, Sequence[ItemScore]]
    mean_of: tuple[str, ...]

    @property
    def overall(self) -> Score:
        return mean_score([self.columns[name] for name in self.mean_of])

    def scores(self) -> dict[str, Score]:
        return {name: mean_score([items]) for name, items in self.columns.items()} | {"Overall": self.overall}

    def against(self, baseline: ScoreTable) -> Difference:
        """The difference of the overall score from the baseline's."""
        return difference([(baseline.columns[name], self.columns[name]) for name in self.mean_of])


def pooled(pairs: Sequence[tuple[ScoreTable, ScoreTable]]) -> Difference:
    """(baseline, other) several times over on the same items, an item's scores averaged before they are compared."""
    baseline, other = (averaged([pair[side] for pair in pairs]) for side in (0, 1))
    return other.against(baseline)


def averaged(tables: Sequence[ScoreTable]) -> ScoreTable:
    """Every item's mean score."""
    columns: dict[str, list[ItemScore]] = {}
    for name in tables[0].mean_of:
        rows = zip(*(table.columns[name] for table in tables), strict=True)
        columns[name] = [ItemScore(row[0].cluster, sum(item.value for item in row) / len(row)) for row in rows]
    return ScoreTable(columns, tables[0].mean_of)
