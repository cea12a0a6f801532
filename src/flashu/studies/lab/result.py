"""What a lab item returns: rows, claims beside measurements, and a figure."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from flashu.errors import FlashUError
from flashu.evaluation.statistics import Difference, Score

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]
Holds = Literal["yes", "no", "unclear"]

INK, FAINT = "#1b1f24", "#9aa4ae"
COLOURS = ("#2457c5", "#d1495b", "#2a9d6f", "#e09f1f", "#7b4fb5", "#4a90a4", "#8c564b", "#6b7280")


@dataclass(frozen=True)
class Claim:
    """What was claimed, what was measured here, and whether it holds here."""

    claimed: str
    measured: str
    holds: Holds


@dataclass(frozen=True)
class Result:
    """Base of all results. A subclass sets ``title`` and ``size`` (inches; all equally wide, so that a
    report's letters are alike) and paints its figure."""

    title: ClassVar[str]
    size: ClassVar[tuple[float, float]] = (11.0, 4.5)

    table: tuple[Row, ...]
    claims: tuple[Claim, ...]
    about: dict[str, Any]

    def rows(self) -> list[Row]:
        return list(self.table)

    def to_dict(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "claims": [asdict(c) for c in self.claims],
            "about": self.about,
            "rows": self.rows(),
        }

    def paint(self, figure: Figure) -> None:
        raise TypeError(f"{type(self).__name__} must define paint")

    def plot(self, path: str | Path) -> None:
        """Write the figure."""
        try:
            from matplotlib.figure import Figure
        except ModuleNotFoundError as error:
            raise FlashUError('figures need matplotlib: pip install "flashu[plots]"') from error
        figure = Figure(figsize=self.size, dpi=130, layout="constrained")
        self.paint(figure)
        figure.savefig(path)

    def save(self, folder: Path, name: str) -> None:
        """NAME.json, NAME.csv and NAME.png in ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        self.plot(folder / f"{name}.png")
        write_csv(folder / f"{name}.csv", self.rows())
        # Last, so that a report never finds numbers without their figure.
        (folder / f"{name}.json").write_text(json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n")


def write_csv(path: Path, rows: list[Row]) -> None:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def scored(column: str, score: Score) -> Row:
    """A score as cells: the value and, in columns of their own, the ends of its interval and the number of items."""
    return {column: score.value, f"{column} low": score.low, f"{column} high": score.high, f"{column} n": score.n}


def compared(difference: Difference | None) -> Row:
    """A paired difference from the baseline as cells; empty for the baseline itself."""
    d = difference
    return {
        "change": None if d is None else d.value,
        "change low": None if d is None else d.low,
        "change high": None if d is None else d.high,
        "lost": None if d is None else d.lost,
        "won": None if d is None else d.won,
        "p": None if d is None else d.p,
    }


def loss_within(difference: Difference, claimed: float) -> Holds:
    """Whether the change is no worse than the claimed one (negative), as far as the interval tells."""
    if difference.low >= claimed:
        return "yes"
    return "no" if difference.high < claimed else "unclear"


def reaches(value: float, claimed: float) -> Holds:
    """Whether a speed-up reaches the claimed one, five percent being the clock's."""
    return "yes" if value >= 0.95 * claimed else "no"


def bounds(rows: Iterable[Row], column: str) -> tuple[list[float], list[list[float]]]:
    """(values, [below, above]) of a column with its interval, for error bars."""
    rows = list(rows)
    values = [r[column] for r in rows]
    below = [r[column] - r[f"{column} low"] for r in rows]
    above = [r[f"{column} high"] - r[column] for r in rows]
    return values, [below, above]


def lines(axes: Axes, rows: Iterable[Row], key: str, x: str) -> None:
    """Overall scores with intervals over ``x``, one line for each ``key``; random arms share one colour and label."""
    rows, colours = list(rows), iter(COLOURS)
    named = set()
    for name in dict.fromkeys(r[key] for r in rows):
        luck = name.startswith("random")
        mine = sorted((r for r in rows if r[key] == name), key=lambda r: r[x])
        values, errors = bounds(mine, "Overall")
        label = None if luck and "random" in named else "random, each a seed" if luck else name
        colour = FAINT if luck else next(colours)
        at = [r[x] for r in mine]
        axes.errorbar(at, values, yerr=errors, marker="o", ms=4, capsize=2, color=colour, label=label)
        named.add("random" if luck else name)
    axes.legend(frameon=False, fontsize=7.5, loc="upper left", bbox_to_anchor=(0, -0.18), ncols=2)
