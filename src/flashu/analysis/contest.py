"""Recipes side by side on one task: scores with intervals, paired differences from the first, fidelity and latency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from flashu.analysis.lab import Lab, Suite, Timing
from flashu.analysis.result import Row, compared, scored
from flashu.bench.quality.fidelity import Fidelity
from flashu.bench.quality.scores import Difference, Sheet
from flashu.bench.quality.work import readable
from flashu.calibrate.calibration import Calibration
from flashu.plan import Task
from flashu.recipe import Recipe


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
    """What one contender did; ``change`` is its overall score less the first contender's, ``faster`` how many
    times faster than it, ``flops_ratio`` how many times fewer FLOPs it plans to compute (longest answer)."""

    label: str
    sheet: Sheet
    change: Difference | None
    fidelity: Fidelity | None
    timing: Timing | None
    faster: Timing | None
    flops_ratio: float | None = None

    @property
    def speedup(self) -> float | None:
        """Median over turns."""
        return None if self.faster is None else self.faster.seconds

    def row(self, *columns: str) -> Row:
        """Cells: the columns named (all if none), the overall score, the paired change, latency, fidelity."""
        scores = self.sheet.scores()
        cells: Row = {"method": self.label}
        for column in columns or [c for c in scores if c != "Overall"]:
            cells |= scored(column, scores[column])
        cells |= scored("Overall", scores["Overall"]) | {"n": scores["Overall"].n} | compared(self.change)
        if self.timing is not None:
            t = self.timing
            cells |= {"seconds": t.seconds, "seconds low": t.low, "seconds high": t.high}
        if self.faster is not None:
            f = self.faster
            cells |= {"speed-up": f.seconds, "speed-up low": f.low, "speed-up high": f.high}
        cells |= {"FLOPs ratio": self.flops_ratio}
        if (alike := self.fidelity) is not None:
            cells |= {"PSNR dB": alike.psnr, "SSIM": alike.ssim, "latent distance": alike.latent}
        return cells


def drawing(lab: Lab, suite: Suite, contenders: Sequence[Contender], *, timed: bool = True) -> list[Place]:
    """Contenders on a generation suite; the first is the baseline of differences, fidelity and speed-up."""
    readable(lab.engine)
    times = _times(lab, "generation", contenders) if timed else {}
    places: list[Place] = []
    vanilla = None
    for contender in contenders:
        drawn = lab.draw(contender.recipe, suite, steps=contender.steps, calibration=contender.calibration)
        vanilla = drawn if vanilla is None else vanilla
        fidelity = None if drawn is vanilla else lab.fidelity(drawn, vanilla)
        places.append(_place(contender, suite.sheet([d.seen for d in drawn]), places, fidelity, times))
    return _costed(lab, "generation", contenders, places)


def answering(lab: Lab, contenders: Sequence[Contender], *, timed: bool = True) -> list[Place]:
    """Contenders on the five understanding suites; the first is the baseline."""
    times = _times(lab, "understanding", contenders) if timed else {}
    places: list[Place] = []
    for contender in contenders:
        places.append(_place(contender, lab.ask(contender.recipe, contender.calibration), places, None, times))
    return _costed(lab, "understanding", contenders, places)


def _place(
    contender: Contender, sheet: Sheet, before: list[Place], fidelity: Fidelity | None, times: dict[str, Timing]
) -> Place:
    first = before[0] if before else None
    mine = times.get(contender.label)
    base = mine if first is None else first.timing
    faster = None if mine is None or base is None else mine.speedup(base)
    change = None if first is None else sheet.against(first.sheet)
    return Place(contender.label, sheet, change, fidelity, mine, faster)


def _costed(lab: Lab, task: Task, contenders: Sequence[Contender], places: Sequence[Place]) -> list[Place]:
    """The places with their FLOPs relative to the first's; None where they are known at run time only."""
    found: list[Place] = []
    base = None
    for place, c in zip(places, contenders, strict=True):
        flops = lab.engine_of(c.recipe, c.calibration).explain(task, steps=c.steps).totals.flops
        base = base or flops
        found.append(replace(place, flops_ratio=None if c.recipe.reads("drift", task) else base / flops))
    return found


def _times(lab: Lab, task: Task, contenders: Sequence[Contender]) -> dict[str, Timing]:
    engines = {c.label: (lab.engine_of(c.recipe, c.calibration), c.steps) for c in contenders}
    return lab.times(engines, task)
