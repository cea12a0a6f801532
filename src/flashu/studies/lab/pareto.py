"""Speed against score of everything, both tasks, and the frontier."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from flashu.studies.lab import rivals as opponents
from flashu.studies.lab.contest import Place, answering, drawing
from flashu.studies.lab.lab import FULL, LONG, Lab
from flashu.studies.lab.result import COLOURS, FAINT, INK, Claim, Holds, Result, Row, bounds
from flashu.studies.lab.rivals import FLASHU, SOLVED, VANILLA

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DENSE = "generation, dense prompts"
UND, LONG_UND = "understanding", f"understanding, speed of {LONG}-token answers"
KINDS = {
    "vanilla": INK,
    "FlashU": COLOURS[1],
    "tuned preset": COLOURS[4],
    "fewer Euler steps": COLOURS[0],
    "better solver": COLOURS[5],
    "cache": COLOURS[3],
    "guidance": COLOURS[2],
    "pruning": FAINT,
}
"""Colours of the kinds of contender."""


@dataclass(frozen=True)
class Pareto(Result):
    """Overall score over speed-up, a panel per task; the frontier joined by a line, its members numbered and named."""

    title: ClassVar[str] = "Honest opponents: speed against score"
    size: ClassVar[tuple[float, float]] = (11.0, 5.2)

    def paint(self, figure: Figure) -> None:
        tasks = list(dict.fromkeys(r["task"] for r in self.table))
        figure.set_size_inches(self.size[0], self.size[1] * len(tasks))
        grid = figure.subplots(len(tasks), 2, width_ratios=(3, 1.25), squeeze=False)
        for (axes, names), task in zip(grid, tasks, strict=True):
            rows = sorted((r for r in self.table if r["task"] == task), key=lambda r: r["speed-up"])
            self._panel(axes, rows)
            axes.set_title(task, loc="left", fontweight="bold", pad=24)
            names.axis("off")
            names.text(0, 1, self._named(rows), va="top", fontsize=8.5, linespacing=1.5, transform=names.transAxes)

    def _panel(self, axes: Axes, rows: Sequence[Row]) -> None:
        front = [(r["speed-up"], r["Overall"]) for r in rows if r["frontier"]]
        axes.plot(*zip(*front, strict=True), color=INK, lw=1, zorder=2, label="frontier")
        for row in rows:
            value, error = bounds([row], "Overall")
            at, colour = row["speed-up"], KINDS[row["kind"]]
            axes.errorbar(at, value, yerr=error, color=colour, lw=1, capsize=2, alpha=0.45, zorder=1)
            axes.plot(at, value, "o", ms=6, color=colour, zorder=3)
        for kind in dict.fromkeys(r["kind"] for r in rows):
            axes.plot([], [], "o", color=KINDS[kind], label=kind)
        self._number(axes, rows)
        axes.set_xscale("log")
        low, high = map(math.log, axes.get_xlim())
        shown: list[float] = []
        for x in (1, 2, 5, 10, 0.5, 3, 0.7, 1.5, 4, 1.2, 7, 0.8, 0.9, 1.1, 1.3):
            apart = min((abs(math.log(x / other)) for other in shown), default=high - low)
            if low <= math.log(x) <= high and apart > 0.06 * (high - low):
                shown.append(x)
        axes.set_xticks(shown, [f"{x:g}x" for x in shown])
        axes.set_xticks([], minor=True)
        axes.set(xlabel="speed-up over the exact recipe, batch 1", ylabel="overall score, 95 % interval")
        axes.grid(axis="y", color="#eeeeee", zorder=0)
        axes.legend(frameon=False, fontsize=8.5, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.13))
        axes.spines[["top", "right"]].set_visible(False)

    def _number(self, axes: Axes, rows: Sequence[Row]) -> None:
        """Numbers of the named ones along the upper edge, apart from each other, each with a thin line to its point."""
        named = [r for r in rows if named_in(r)]
        ends = (0.9 * rows[0]["speed-up"], 1.1 * rows[-1]["speed-up"])
        axes.set_xlim(*ends)
        left, right = map(math.log, ends)
        places = spread([(math.log(r["speed-up"]) - left) / (right - left) for r in named], 0.035)
        for k, (row, place) in enumerate(zip(named, places, strict=True), 1):
            colour = KINDS[row["kind"]]
            axes.annotate(
                str(k),
                (row["speed-up"], row["Overall"]),
                xytext=(place, 1.02),
                textcoords="axes fraction",
                ha="center",
                fontsize=8.5,
                color=colour,
                fontweight="bold" if row["frontier"] else "normal",
                arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.6, "alpha": 0.6, "shrinkB": 3},
            )

    @staticmethod
    def _named(rows: Sequence[Row]) -> str:
        def line(k: int, row: Row) -> str:
            mark = "*" if row["frontier"] else " "
            return f"{k:>2}{mark} {row['method']}: {row['speed-up']:.2f}x, {row['Overall']:.3f}"

        told = [line(k, row) for k, row in enumerate([r for r in rows if named_in(r)], 1)]
        slow = 1 / original if (original := rows[0]["original"]) else 0
        return "\n".join(
            [
                "* on the frontier",
                *told,
                "",
                f"The original program: {slow:.2f}x,",
                "so ratios over it are",
                f"{original:.2f} times these.",
            ]
        )


def named_in(row: Row) -> bool:
    """Whether a figure names this row: the frontier, FlashU and the tuned presets."""
    return bool(row["frontier"]) or row["kind"] in ("FlashU", "tuned preset")


def spread(places: Sequence[float], apart: float) -> list[float]:
    """Increasing places in [0, 1] moved as little as a sweep to the right and back needs to be ``apart``."""
    found: list[float] = []
    for place in places:
        found.append(max(place, found[-1] + apart) if found else place)
    limit = 1.0
    for k in range(len(found) - 1, -1, -1):
        found[k] = min(found[k], limit)
        limit = found[k] - apart
    return found


def kind_of(label: str) -> str:
    """The kind of a contender by the name a table gives it."""
    if label.startswith(VANILLA):
        return "vanilla" if label == VANILLA else "fewer Euler steps"
    for start, kind in {"FlashU": "FlashU", "tuned": "tuned preset"}.items():
        if label.startswith(start):
            return kind
    if any(label.startswith(name) for name in SOLVED.values()):
        return "better solver"
    if label.startswith(("reuse", "Taylor")):
        return "cache"
    return "guidance" if label.startswith(("guidance", "unconditional")) else "pruning"


def pareto(lab: Lab) -> Pareto:
    """Generation on dense prompts, which leave more to lose than the six categories (those too in a full run);
    understanding on the five suites, at the pace of their short answers and of long ones."""
    rows: list[Row] = []
    claims: list[Claim] = []
    drawn = opponents.generation(lab)
    asked = answering(lab, opponents.understanding(lab))
    panels = {
        DENSE: drawing(lab, lab.dpg, drawn),
        UND: asked,
        LONG_UND: [replace(place, pace=place.long) for place in asked],
    }
    if lab.size == FULL:
        panels["generation, GenEval"] = drawing(lab, lab.geneval, drawn)
    for panel, places in panels.items():
        ahead = frontier(places)
        base = places[0].pace
        assert base is not None
        for place in places:
            found = {"task": panel, "kind": kind_of(place.label), "frontier": place in ahead}
            found |= {"beaten by": beaten_by(place, places), "original": base.over_original.seconds}
            rows.append(found | place.row("Overall"))
        claims += [_verdict(panel, places, ahead), *_equal_time(places)]
    return Pareto(tuple(rows), tuple(claims), lab.about(images=len(lab.dpg.texts), questions=len(lab.und.items)))


def frontier(places: Sequence[Place]) -> list[Place]:
    """Those that no other is both as fast as and as good as, one of them strictly (by point estimates)."""

    def point(place: Place) -> tuple[float, float]:
        return place.speedup, place.sheet.overall.value

    def dominated(place: Place) -> bool:
        mine = point(place)
        return any(p != mine and p[0] >= mine[0] and p[1] >= mine[1] for p in map(point, places))

    return [place for place in places if not dominated(place)]


def beaten_by(place: Place, places: Sequence[Place]) -> str | None:
    """The fastest contender at least as fast whose score is significantly higher."""
    faster = [p for p in places if p is not place and p.speedup >= place.speedup]
    better = [p for p in faster if (d := p.sheet.against(place.sheet)).significant and d.value > 0]
    return max(better, key=lambda p: p.speedup).label if better else None


def _verdict(task: str, places: Sequence[Place], ahead: Sequence[Place]) -> Claim:
    paper = next(p for p in places if p.label == FLASHU[0])
    better = beaten_by(paper, places)
    holds: Holds = "no" if better else "yes" if paper in ahead else "unclear"
    names = ", ".join(p.label for p in sorted(ahead, key=lambda p: p.speedup))
    told = f"frontier: {names}" + (f"; FlashU is significantly beaten by {better}" if better else "")
    return Claim(f"FlashU lies on the frontier of {task}", told, holds)


def _equal_time(places: Sequence[Place]) -> list[Claim]:
    """FlashU against vanilla with as many steps as its time allows."""
    paper = next(p for p in places if p.label == FLASHU[0])
    few = [p for p in places[1:] if p.label.startswith(VANILLA) and p.speedup >= 0.95 * paper.speedup]
    if not few:
        return []
    rival = min(few, key=lambda p: p.speedup)
    change = paper.sheet.against(rival.sheet)
    holds: Holds = "unclear" if not change.significant else "yes" if change.value > 0 else "no"
    told = f"against {rival.label} ({rival.speedup:.2f}x, FlashU {paper.speedup:.2f}x): {change}"
    return [Claim("FlashU is better than vanilla with fewer steps at equal time", told, holds)]
