"""Speed against score of everything, both tasks, and the frontier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from flashu.studies.frontier import frontier
from flashu.studies.lab import cases, figures
from flashu.studies.lab.cases import FLASHU
from flashu.studies.lab.compare import LONG, LONGER, OVER_ORIGINAL, Outcome, compare
from flashu.studies.lab.lab import FULL, Lab
from flashu.studies.lab.result import Claim, Result, Row, better, holds

DENSE = "generation, dense prompts"
UND, LONG_UND = "understanding", f"understanding, speed of {LONG}-token answers"


def pareto(lab: Lab) -> Result:
    """Generation on dense prompts, which leave more to lose than the six categories (those too in a full run);
    understanding on the five suites, at the speed of their short answers and of long ones."""
    rows: list[Row] = []
    claims: list[Claim] = []
    generation = cases.generation(lab)
    answered = compare(lab, lab.und, cases.understanding(lab))
    tasks = {
        DENSE: compare(lab, lab.dpg, generation),
        UND: answered,
        LONG_UND: [replace(o, times={**o.times, **{c: o.times[long] for c, long in LONGER.items()}}) for o in answered],
    }
    if lab.size == FULL:
        tasks["generation, GenEval"] = compare(lab, lab.geneval, generation)
    for task, outcomes in tasks.items():
        ahead = frontier([(o.speedup, o.scores.overall.value) for o in outcomes])
        original = outcomes[0].times[OVER_ORIGINAL].median
        for outcome, first in zip(outcomes, ahead, strict=True):
            found: Row = {"task": task, "kind": outcome.case.kind, "frontier": first}
            found |= {"beaten by": beaten_by(outcome, outcomes), "original": original}
            rows.append(found | outcome.row("Overall"))
        claims += [_on_frontier(task, outcomes, ahead), *_equal_time(outcomes)]
    about = lab.about(images=len(lab.dpg.texts), questions=len(lab.und.items))
    return Result("Baselines: speed against score", rows, claims, about, figures.pareto, 5.2 * len(tasks))


def beaten_by(outcome: Outcome, outcomes: Sequence[Outcome]) -> str | None:
    """The fastest case at least as fast whose score is significantly higher."""
    faster = [o for o in outcomes if o is not outcome and o.speedup >= outcome.speedup]
    winners = [o for o in faster if better(o.scores.against(outcome.scores)) == "yes"]
    return max(winners, key=lambda o: o.speedup).label if winners else None


def _on_frontier(task: str, outcomes: Sequence[Outcome], ahead: Sequence[bool]) -> Claim:
    front = sorted((o for o, first in zip(outcomes, ahead, strict=True) if first), key=lambda o: o.speedup)
    paper = next(o for o in outcomes if o.label == FLASHU)
    winner = beaten_by(paper, outcomes)
    measured = "frontier: " + ", ".join(o.label for o in front)
    measured += f"; FlashU is significantly beaten by {winner}" if winner else ""
    return Claim(f"FlashU lies on the frontier of {task}", measured, holds(paper in front and not winner, bool(winner)))


def _equal_time(outcomes: Sequence[Outcome]) -> list[Claim]:
    """FlashU against vanilla with as many steps as its time allows."""
    paper = next(o for o in outcomes if o.label == FLASHU)
    few = [o for o in outcomes if o.case.kind == "fewer Euler steps" and o.speedup >= 0.95 * paper.speedup]
    if not few:
        return []
    other = min(few, key=lambda o: o.speedup)
    change = paper.scores.against(other.scores)
    measured = f"against {other.label} ({other.speedup:.2f}x, FlashU {paper.speedup:.2f}x): {change}"
    return [Claim("FlashU is better than vanilla with fewer steps at equal time", measured, better(change))]
