"""Recipes side by side on one suite: scores with intervals, paired differences, fidelity, latency and FLOPs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from flashu.evaluation.fidelity import Fidelity
from flashu.evaluation.scenes_items import Drawing, drawn_world
from flashu.evaluation.scenes_questions import QuestionSuite
from flashu.evaluation.score_table import ScoreTable
from flashu.evaluation.statistics import Difference, Spread
from flashu.plan import Task
from flashu.studies.lab import inner
from flashu.studies.lab.cases import Case
from flashu.studies.lab.lab import Lab, Suite
from flashu.studies.lab.result import Row, compared, ranged, scored

LONG = 64
"""Tokens of the longer answers that are timed beside the suites' own."""
SECONDS, SPEEDUP, OVER_ORIGINAL = TIMES = ("seconds", "speed-up", "over original")
"""Columns: of one request, over the first case, over the original program."""
LONGER = {column: f"{column}, {LONG} tokens" for column in TIMES}
"""The same of an answer of `LONG` tokens."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one case did. ``change``: its overall score less the first case's; ``times`` by column, where taken;
    ``flops_ratio``: how many times fewer FLOPs than the first case it plans to compute (longest answer), None where
    known at run time only."""

    case: Case
    scores: ScoreTable
    change: Difference | None = None
    fidelity: Fidelity | None = None
    times: Mapping[str, Spread] = field(default_factory=dict)
    flops_ratio: float | None = None

    @property
    def label(self) -> str:
        return self.case.label

    @property
    def changed(self) -> Difference:
        """``change`` of a case that is not the first."""
        assert self.change is not None
        return self.change

    @property
    def speedup(self) -> float:
        return self.times[SPEEDUP].median

    def row(self, *columns: str) -> Row:
        """Cells: the case's own, the columns named (all if none), overall score, change, times, FLOPs, fidelity."""
        scores = self.scores.scores()
        cells: Row = {**self.case.cells, "method": self.label}
        for column in [*(columns or scores), "Overall"]:
            cells |= scored(column, scores[column])
        cells |= compared(self.change)
        for column, spread in self.times.items():
            cells |= ranged(column, spread)
        cells |= {"FLOPs ratio": self.flops_ratio}
        if (found := self.fidelity) is not None:
            cells |= {"PSNR dB": found.psnr, "SSIM": found.ssim, "latent distance": found.latent}
        return cells


def compare(lab: Lab, suite: Suite, cases: Sequence[Case], *, timed: bool = True, blind: bool = False) -> list[Outcome]:
    """Cases on a suite; the first is the baseline of changes, fidelity, speed-up and FLOPs. ``blind``: questions are
    also asked about an empty board."""
    task: Task = "understanding" if isinstance(suite, QuestionSuite) else "generation"
    if task == "generation":
        drawn_world(lab.engine)  # its images can be scored
    times = _times(lab, task, cases) if timed else [{} for _ in cases]
    flops = [lab.engine_of(c.recipe, c.calibration).explain(task, steps=c.steps).totals.flops for c in cases]
    outcomes: list[Outcome] = []
    first: list[Drawing] = []
    for case, taken, own in zip(cases, times, flops, strict=True):
        scores, drawn = lab.score(case, suite, blind=blind)
        change = scores.against(outcomes[0].scores) if outcomes else None
        fidelity = lab.fidelity(drawn, first) if first else None
        first = first or drawn
        fewer = None if case.recipe.reads("drift", task) else flops[0] / own
        outcomes.append(Outcome(case, scores, change, fidelity, taken, fewer))
    return outcomes


def _times(lab: Lab, task: Task, cases: Sequence[Case]) -> list[dict[str, Spread]]:
    """The cases' times by column, taken in turns with the original program's."""
    engines = {case.label: (lab.engine_of(case.recipe, case.calibration), case.steps) for case in cases}
    engines[inner.ORIGINAL] = (inner.original(lab.engine), None)
    found: list[dict[str, Spread]] = [{} for _ in cases]
    for tokens in (None, LONG) if task == "understanding" else (None,):
        *own, original = lab.times(engines, task, tokens).values()
        for times, seconds in zip(found, own, strict=True):
            values = (seconds, seconds.speedup(own[0]), seconds.speedup(original))
            times.update(zip(LONGER.values() if tokens else TIMES, values, strict=True))
    return found
