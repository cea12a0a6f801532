"""Recipes side by side on one task: scores with intervals, paired differences from the first, fidelity and latency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from flashu.evaluation.fidelity import Fidelity
from flashu.evaluation.scenes_items import drawn_world
from flashu.evaluation.score_table import ScoreTable
from flashu.evaluation.statistics import Difference
from flashu.inference.calibrate.calibration import Calibration
from flashu.plan import Task
from flashu.plan.recipe import Recipe
from flashu.studies.lab.lab import LONG, Lab, Pace, Suite, Timing
from flashu.studies.lab.result import Row, compared, scored


@dataclass(frozen=True, eq=False)
class Contender:
    """A recipe under the name a table gives it; ``steps`` other than the model's; ``calibration`` other than the
    lab's."""

    label: str
    recipe: Recipe
    steps: int | None = None
    calibration: Calibration | None = None


@dataclass(frozen=True, eq=False)
class Place:
    """What one contender did; ``change`` is its overall score less the first contender's, ``flops_ratio`` how many
    times fewer FLOPs than it the contender plans to compute (longest answer), ``pace`` of one request and ``long`` of
    an answer of `LONG` tokens."""

    label: str
    sheet: ScoreTable
    change: Difference | None
    fidelity: Fidelity | None
    pace: Pace | None = None
    long: Pace | None = None
    flops_ratio: float | None = None

    @property
    def speedup(self) -> float:
        """Over the first contender, median over turns; 0 where not timed."""
        return 0.0 if self.pace is None else self.pace.faster.seconds

    def row(self, *columns: str) -> Row:
        """Cells: the columns named (all if none), the overall score, the paired change, latency, fidelity."""
        scores = self.sheet.scores()
        cells: Row = {"method": self.label}
        for column in columns or [c for c in scores if c != "Overall"]:
            cells |= scored(column, scores[column])
        cells |= scored("Overall", scores["Overall"]) | compared(self.change)
        if self.pace is not None:
            cells |= ranged("seconds", self.pace.own) | ranged("speed-up", self.pace.faster)
            cells |= ranged("over original", self.pace.over_original)
        if self.long is not None:
            cells |= ranged(f"speed-up, {LONG} tokens", self.long.faster)
            cells |= ranged(f"over original, {LONG} tokens", self.long.over_original)
        cells |= {"FLOPs ratio": self.flops_ratio}
        if (alike := self.fidelity) is not None:
            cells |= {"PSNR dB": alike.psnr, "SSIM": alike.ssim, "latent distance": alike.latent}
        return cells


def drawing(lab: Lab, suite: Suite, contenders: Sequence[Contender], *, timed: bool = True) -> list[Place]:
    """Contenders on a generation suite; the first is the baseline of differences, fidelity and speed-up."""
    drawn_world(lab.engine)
    paces = _paces(lab, "generation", contenders) if timed else None
    places: list[Place] = []
    vanilla = None
    for contender in contenders:
        drawn = lab.draw(contender.recipe, suite, steps=contender.steps, calibration=contender.calibration)
        vanilla = drawn if vanilla is None else vanilla
        fidelity = None if drawn is vanilla else lab.fidelity(drawn, vanilla)
        places.append(_place(contender, suite.score([d.objects for d in drawn]), places, fidelity))
    return _costed(lab, "generation", contenders, _timed(places, paces))


def answering(lab: Lab, contenders: Sequence[Contender], *, timed: bool = True, blind: bool = False) -> list[Place]:
    """Contenders on the five understanding suites; the first is the baseline. ``blind``: with the blind score."""
    paces = _paces(lab, "understanding", contenders) if timed else None
    long = _paces(lab, "understanding", contenders, LONG) if timed else None
    places: list[Place] = []
    for contender in contenders:
        sheet = lab.ask(contender.recipe, contender.calibration, blind=blind)
        places.append(_place(contender, sheet, places, None))
    return _costed(lab, "understanding", contenders, _timed(places, paces, long))


def _place(contender: Contender, sheet: ScoreTable, before: list[Place], fidelity: Fidelity | None) -> Place:
    return Place(contender.label, sheet, sheet.against(before[0].sheet) if before else None, fidelity)


def _timed(places: list[Place], paces: list[Pace] | None, long: list[Pace] | None = None) -> list[Place]:
    none = [None] * len(places)
    each = zip(places, paces or none, long or none, strict=True)
    return [replace(place, pace=pace, long=slow) for place, pace, slow in each]


def _costed(lab: Lab, task: Task, contenders: Sequence[Contender], places: Sequence[Place]) -> list[Place]:
    """The places with their FLOPs relative to the first's; None where they are known at run time only."""
    found: list[Place] = []
    base = None
    for place, c in zip(places, contenders, strict=True):
        flops = lab.engine_of(c.recipe, c.calibration).explain(task, steps=c.steps).totals.flops
        base = base or flops
        found.append(replace(place, flops_ratio=None if c.recipe.reads("drift", task) else base / flops))
    return found


def _paces(lab: Lab, task: Task, contenders: Sequence[Contender], tokens: int | None = None) -> list[Pace]:
    field = {c.label: (lab.engine_of(c.recipe, c.calibration), c.steps) for c in contenders}
    return lab.paces(field, task, tokens)


def ranged(column: str, t: Timing) -> Row:
    """A median as cells, with its quartiles."""
    return {column: t.seconds, f"{column} low": t.low, f"{column} high": t.high}
