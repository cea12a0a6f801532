"""Tables 1 to 3: vanilla against FlashU, understanding and generation, score and latency."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from flashu.evaluation import scenes_questions as und
from flashu.plan.recipe import UnderstandingConfig, exact, paper
from flashu.studies.lab.contest import Contender, Place, answering, drawing
from flashu.studies.lab.lab import LONG, Lab, Suite
from flashu.studies.lab.result import COLOURS, Claim, Holds, Result, bounds, loss_within, reaches
from flashu.studies.lab.rivals import tuned

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VANILLA, FLASHU = "vanilla", "FlashU"
OTHER_SIDE = "FlashU, other side"
"""FlashU with the visual tokens of smallest value norm dropped, where the paper drops the largest."""


@dataclass(frozen=True)
class TableResult(Result):
    """Bars per column with intervals."""

    title: ClassVar[str] = ""
    size: ClassVar[tuple[float, float]] = (11.0, 4.6)

    def paint(self, figure: Figure) -> None:
        axes = figure.subplots()
        rows = self.rows()
        columns = [c for c in rows[0] if f"{c} n" in rows[0]]
        width = 0.8 / len(rows)
        for k, row in enumerate(rows):
            pairs = [bounds([row], c) for c in columns]
            values = [v[0] for v, _ in pairs]
            errors = [[e[0][0] for _, e in pairs], [e[1][0] for _, e in pairs]]
            at = [x + (k - (len(rows) - 1) / 2) * width for x in range(len(columns))]
            label = f"{row['method']}\n{row['speed-up']:.2f}x, {row['over original']:.2f}x the original"
            axes.bar(at, values, 0.9 * width, yerr=errors, color=COLOURS[k], label=label, capsize=2, ecolor="#00000088")
        axes.set_xticks(range(len(columns)), [f"{c}\nn = {rows[0][f'{c} n']}" for c in columns])
        axes.set_ylim(0, 1.02)
        axes.set_ylabel("score")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8.5, ncols=len(rows), loc="lower center", bbox_to_anchor=(0.5, 1.0))


@dataclass(frozen=True)
class Table1(TableResult):
    title: ClassVar[str] = "Table 1: questions, vanilla against FlashU"


@dataclass(frozen=True)
class Table2(TableResult):
    title: ClassVar[str] = "Table 2: GenEval, vanilla against FlashU"


@dataclass(frozen=True)
class Table3(TableResult):
    title: ClassVar[str] = "Table 3: dense prompts, vanilla against FlashU"


def table1(lab: Lab) -> Table1:
    """Five question suites; FlashU as published, with the other pruning side, and the tuned presets."""
    other = replace(UnderstandingConfig(), token_side="smallest")
    contenders = [
        Contender(VANILLA, exact()),
        Contender(FLASHU, paper()),
        Contender(OTHER_SIDE, replace(paper(), name="other side", methods=other.methods())),
        *tuned(lab),
    ]
    places = answering(lab, contenders, blind=True)
    base, fast, turned, *found = places
    assert fast.change is not None
    assert turned.change is not None
    # Mean relative change of the six scores of the 7B model in Table 1.
    claimed = -0.07 * base.sheet.overall.value
    blind, seen = (base.sheet.scores()[c] for c in (und.BLIND, und.VISION))
    claims = (
        *_speed("1.78x on questions (7B)", fast, 1.78),
        Claim("the scores fall by 7 % on average", f"{fast.change}", loss_within(fast.change, claimed)),
        Claim(
            "the visual tokens with the largest value norms are the ones to drop",
            f"dropping the smallest instead: {turned.change} against vanilla",
            "yes"
            if fast.change.low > turned.change.high
            else "no"
            if turned.change.low > fast.change.high
            else "unclear",
        ),
        *(claim for place in found[:1] for claim in _bar(place, 1.78)),
        Claim(
            "(benchmark) the vision suite needs the image",
            f"seen {seen}, empty board {blind}",
            _yes(seen.low > blind.high),
        ),
    )
    return Table1(tuple(p.row() for p in places), claims, lab.about(questions=len(lab.und.items)))


def table2(lab: Lab) -> Table2:
    """The six categories of GenEval."""
    places, claims = _generation(lab, lab.geneval, "2.01x on GenEval (1.5B)", 2.01, "overall 0.73 -> 0.71", -0.02)
    return Table2(tuple(p.row() for p in places), claims, lab.about(images=len(lab.geneval.texts)))


def table3(lab: Lab) -> Table3:
    """Dense prompts, fact by fact."""
    places, claims = _generation(lab, lab.dpg, "1.85x on DPG-Bench (1.5B)", 1.85, "overall 85.0 -> 84.1", -0.009)
    rows = tuple(p.row(*(c for c in p.sheet.columns if c != "Facts")) for p in places)
    return Table3(rows, claims, lab.about(images=len(lab.dpg.texts)))


def _generation(
    lab: Lab, suite: Suite, speed: str, times: float, score: str, loss: float
) -> tuple[list[Place], tuple[Claim, ...]]:
    places = drawing(lab, suite, [Contender(VANILLA, exact()), Contender(FLASHU, paper()), *tuned(lab)])
    change = places[1].change
    assert change is not None
    bars = [claim for place in places[2:3] for claim in _bar(place, 3.0)]
    return places, (*_speed(speed, places[1], times), Claim(score, str(change), loss_within(change, loss)), *bars)


def _speed(claimed: str, place: Place, times: float) -> tuple[Claim, Claim]:
    """The claim about a speed-up over the released program, which is what the paper had, and over the exact runtime."""
    pace, long = place.pace, place.long
    assert pace is not None
    over = [f"{pace.over_original}", *([f"{long.over_original} for answers of {LONG} tokens"] if long else [])]
    faster = [f"{pace.faster}", *([f"{long.faster} for answers of {LONG} tokens"] if long else [])]
    return (
        Claim(f"{claimed}, over the original program", "; ".join(over), reaches(pace.over_original.seconds, times)),
        Claim("(stricter) as much over the exact runtime", "; ".join(faster), reaches(pace.faster.seconds, times)),
    )


def _bar(place: Place, times: float) -> tuple[Claim, ...]:
    """Our own bar for a tuned preset: this fast, with its loss stated."""
    change = place.change
    assert change is not None
    lost = change.significant and change.value < 0
    return (
        *_speed(f"(bar) {place.label}: {times:g}x", place, times),
        Claim(f"(bar) {place.label}: no significant loss", str(change), _yes(not lost)),
    )


def _yes(fact: bool) -> Holds:
    return "yes" if fact else "no"
