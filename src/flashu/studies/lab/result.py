"""What a lab item returns: rows, claims beside measurements, and a figure."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from flashu.errors import FlashUError
from flashu.evaluation.files import atomic_write
from flashu.evaluation.statistics import Difference, Score, Spread
from flashu.studies.lab.figures import STYLE, WIDTH

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]
Holds = Literal["yes", "no", "unclear"]


@dataclass(frozen=True)
class Claim:
    """What was claimed, what was measured here, and whether it holds here."""

    claimed: str
    measured: str
    holds: Holds


@dataclass(frozen=True)
class Result:
    """``about``: the conditions. ``paint`` draws the figure, ``height`` inches high."""

    title: str
    rows: list[Row]
    claims: list[Claim]
    about: dict[str, Any]
    paint: Callable[[Figure, Result], None]
    height: float = 4.5

    def to_dict(self) -> dict[str, Any]:
        claims = [asdict(claim) for claim in self.claims]
        return {"title": self.title, "claims": claims, "about": self.about, "rows": self.rows}

    def save(self, folder: Path, name: str) -> None:
        """NAME.png, NAME.csv and NAME.json in ``folder``."""
        figure, table, facts = self._figure(), self._csv(), json.dumps(self.to_dict(), indent=1, allow_nan=False)
        atomic_write(folder / f"{name}.png", figure)
        atomic_write(folder / f"{name}.csv", table)
        # Last, so that a report never finds numbers without their figure.
        atomic_write(folder / f"{name}.json", facts + "\n")

    def _figure(self) -> bytes:
        try:
            from matplotlib import rc_context
            from matplotlib.figure import Figure
        except ModuleNotFoundError as error:
            raise FlashUError('figures need matplotlib: pip install ".[plots]" in a clone of flashu') from error
        file = io.BytesIO()
        with rc_context(STYLE):
            figure = Figure(figsize=(WIDTH, self.height), dpi=130, layout="constrained")
            self.paint(figure, self)
            figure.savefig(file, format="png")
        return file.getvalue()

    def _csv(self) -> str:
        file = io.StringIO(newline="")
        writer = csv.DictWriter(file, list(dict.fromkeys(column for row in self.rows for column in row)))
        writer.writeheader()
        writer.writerows(self.rows)
        return file.getvalue()


# -- cells -------------------------------------------------------------------------------------------------------------
def scored(column: str, score: Score) -> Row:
    """A score as cells: the value and, in columns of their own, the ends of its interval and the number of items."""
    return {column: score.value, f"{column} low": score.low, f"{column} high": score.high, f"{column} n": score.n}


def ranged(column: str, spread: Spread) -> Row:
    """A median as cells, with its quartiles."""
    return {column: spread.median, f"{column} low": spread.low, f"{column} high": spread.high}


def compared(difference: Difference | None) -> Row:
    """A paired difference from the baseline as cells; empty for the baseline itself."""
    cells = dict.fromkeys(("value", "low", "high", "lost", "won", "p")) if difference is None else asdict(difference)
    named = {"value": "change", "low": "change low", "high": "change high"}
    return {named.get(key, key): value for key, value in cells.items()}


# -- verdicts ----------------------------------------------------------------------------------------------------------
def holds(yes: bool, no: bool | None = None) -> Holds:
    """ "no" if ``no``, by default whenever not ``yes``; "unclear" if neither."""
    if yes:
        return "yes"
    return "no" if no is None or no else "unclear"


def loss_within(difference: Difference, claimed: float) -> Holds:
    """Whether the change is no worse than the claimed one (negative), as far as the interval shows."""
    return holds(difference.low >= claimed, difference.high < claimed)


def better(difference: Difference) -> Holds:
    """Whether a difference is significantly above 0, or below it."""
    return holds(difference.significant and difference.value > 0, difference.significant)


def reaches(value: float, claimed: float) -> Holds:
    """Whether a speed-up reaches the claimed one; five percent are the clock's."""
    return holds(value >= 0.95 * claimed)


def ratio(speedup: Spread) -> str:
    return f"{speedup.median:.2f}x [{speedup.low:.2f}, {speedup.high:.2f}]"
