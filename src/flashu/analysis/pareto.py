"""Speed against score of everything, both tasks, and the frontier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from flashu.analysis import opponents
from flashu.analysis.contest import Place, answering, drawing
from flashu.analysis.lab import FULL, Lab
from flashu.analysis.opponents import FLASHU, VANILLA
from flashu.analysis.result import COLOURS, FAINT, INK, Claim, Holds, Result, Row, bounds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DENSE = "generation, dense prompts"


@dataclass(frozen=True)
class Pareto(Result):
    """Overall score over speed-up; the frontier joined by a line."""

    title: ClassVar[str] = "Honest opponents: speed against score"
    size: ClassVar[tuple[float, float]] = (13.0, 6.0)

    def paint(self, figure: Figure) -> None:
        tasks = list(dict.fromkeys(r["task"] for r in self.table))
        figure.set_size_inches(6.5 * len(tasks), 8.5)
        for axes, task in zip(figure.subplots(1, len(tasks)), tasks, strict=True):
            rows = [r for r in self.table if r["task"] == task]
            front = sorted((r["speed-up"], r["Overall"]) for r in rows if r["frontier"])
            axes.plot(*zip(*front, strict=True), color=INK, lw=1, zorder=1)
            for k, row in enumerate(rows, 1):
                family = row["method"].split(",")[0]
                colour = COLOURS[1] if row["method"] in FLASHU else COLOURS[0] if family == VANILLA else FAINT
                value, error = bounds([row], "Overall")
                axes.errorbar(row["speed-up"], value[0], yerr=error, fmt="o", color=colour, capsize=2, zorder=2)
                axes.annotate(
                    str(k), (row["speed-up"], value[0]), xytext=(5, 3), textcoords="offset points", fontsize=8
                )
                axes.plot([], [], " ", label=f"{k} {row['method']}")
            axes.set(xlabel="speed-up over vanilla, batch 1", ylabel="overall score")
            axes.set_title(f"{task}\nline: frontier; red: FlashU; blue: vanilla, fewer steps", loc="left", fontsize=9)
            axes.legend(frameon=False, fontsize=7, handlelength=0, ncols=2, loc="upper left", bbox_to_anchor=(0, -0.1))
            axes.spines[["top", "right"]].set_visible(False)


def pareto(lab: Lab) -> Pareto:
    """Generation on dense prompts, which leave more to lose than the six categories (those too in a full run);
    understanding on the five suites."""
    rows: list[Row] = []
    claims: list[Claim] = []
    drawn = opponents.generation(lab)
    panels = {DENSE: drawing(lab, lab.dpg, drawn), "understanding": answering(lab, opponents.understanding(lab))}
    if lab.size == FULL:
        panels["generation, GenEval"] = drawing(lab, lab.geneval, drawn)
    for panel, places in panels.items():
        ahead = frontier(places)
        for place in places:
            found = {"task": panel, "frontier": place in ahead, "beaten by": beaten_by(place, places)}
            rows.append(found | place.row("Overall"))
        claims += [_verdict(panel, places, ahead), *_equal_time(places)]
    return Pareto(tuple(rows), tuple(claims), lab.about(images=len(lab.dpg.texts), questions=len(lab.und.asked)))


def frontier(places: Sequence[Place]) -> list[Place]:
    """Those that no other is both as fast as and as good as, one of them strictly (by point estimates)."""

    def point(place: Place) -> tuple[float, float]:
        return place.speedup or 0.0, place.sheet.overall.value

    def dominated(place: Place) -> bool:
        mine = point(place)
        return any(p != mine and p[0] >= mine[0] and p[1] >= mine[1] for p in map(point, places))

    return [place for place in places if not dominated(place)]


def beaten_by(place: Place, places: Sequence[Place]) -> str | None:
    """The fastest contender at least as fast whose score is significantly higher."""
    faster = [p for p in places if p is not place and (p.speedup or 0) >= (place.speedup or 0)]
    better = [p for p in faster if (d := p.sheet.against(place.sheet)).significant and d.value > 0]
    return max(better, key=lambda p: p.speedup or 0).label if better else None


def _verdict(task: str, places: Sequence[Place], ahead: Sequence[Place]) -> Claim:
    paper = next(p for p in places if p.label == FLASHU[0])
    better = beaten_by(paper, places)
    holds: Holds = "no" if better else "yes" if paper in ahead else "unclear"
    names = ", ".join(p.label for p in sorted(ahead, key=lambda p: p.speedup or 0))
    told = f"frontier: {names}" + (f"; FlashU is significantly beaten by {better}" if better else "")
    return Claim(f"FlashU lies on the frontier of {task}", told, holds)


def _equal_time(places: Sequence[Place]) -> list[Claim]:
    """FlashU against vanilla with as many steps as its time allows."""
    paper = next(p for p in places if p.label == FLASHU[0])
    few = [p for p in places[1:] if p.label.startswith(VANILLA) and (p.speedup or 0) >= 0.95 * (paper.speedup or 0)]
    if not few:
        return []
    rival = min(few, key=lambda p: p.speedup or 0)
    change = paper.sheet.against(rival.sheet)
    holds: Holds = "unclear" if not change.significant else "yes" if change.value > 0 else "no"
    told = f"against {rival.label} ({rival.speedup:.2f}x, FlashU {paper.speedup:.2f}x): {change}"
    return [Claim("FlashU is better than vanilla with fewer steps at equal time", told, holds)]
