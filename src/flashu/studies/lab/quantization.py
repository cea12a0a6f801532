"""What eight-bit weights cost in quality: each scheme of `models.quantize` beside the full weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from flashu.errors import FlashUError
from flashu.evaluation.scenes_items import drawn_world
from flashu.evaluation.score_table import ScoreTable
from flashu.inference.engine import Engine
from flashu.models.quantize import SCHEMES, quantize, weight_bytes
from flashu.plan.recipe import exact
from flashu.studies.lab.lab import Lab
from flashu.studies.lab.result import COLOURS, FAINT, Claim, Result, Row, bounds, compared, loss_within, scored

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FULL = "vanilla"
LOSS = -0.02
"""The change of a score that is still called none."""


@dataclass(frozen=True)
class Quantization(Result):
    """Overall scores with intervals, one panel per task."""

    title: ClassVar[str] = "Quantization: eight-bit weights against full ones"
    size: ClassVar[tuple[float, float]] = (10.0, 3.8)

    def paint(self, figure: Figure) -> None:
        tasks = list(dict.fromkeys(row["task"] for row in self.table))
        for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
            rows = [row for row in self.table if row["task"] == task]
            values, (below, above) = bounds(rows, "Overall")
            for k, row in enumerate(rows):
                colour = FAINT if k == 0 else COLOURS[k - 1]
                axes.errorbar(k, values[k], yerr=[[below[k]], [above[k]]], fmt="o", color=colour, capsize=3)
                axes.annotate(f"{row['weights MB']:.3g} MB", (k, values[k]), (6, -3), textcoords="offset points")
            axes.set_xticks(range(len(rows)), [row["method"] for row in rows])
            axes.set_xlim(-0.5, len(rows))
            axes.set_ylabel("overall score")
            axes.set_title(task, loc="left")
            axes.spines[["top", "right"]].set_visible(False)


def quantization(lab: Lab) -> Quantization:
    """GenEval and the five question suites, under the exact recipe."""
    drawn_world(lab.engine)
    rows: list[Row] = []
    claims: list[Claim] = []
    refused: dict[str, str] = {}
    drawn = lab.draw(exact(), lab.geneval)
    vanilla = {"generation": lab.geneval.score([d.objects for d in drawn]), "understanding": lab.ask(exact())}
    rows += [_row(task, FULL, sheet, None, weight_bytes(lab.engine.model)) for task, sheet in vanilla.items()]
    for scheme, other in _narrowed(lab, refused):
        mine = other.draw(exact(), lab.geneval)
        alike = lab.fidelity(mine, drawn)
        sheets = {"generation": lab.geneval.score([d.objects for d in mine]), "understanding": other.ask(exact())}
        for task, sheet in sheets.items():
            change = sheet.against(vanilla[task])
            row = _row(task, scheme, sheet, vanilla[task], weight_bytes(other.engine.model))
            rows.append(row | ({"PSNR dB": alike.psnr} if alike is not None and task == "generation" else {}))
            claims.append(Claim(f"{scheme} loses nothing at {task}", str(change), loss_within(change, LOSS)))
    about = lab.about(images=len(lab.geneval.texts), questions=len(lab.und.items), refused=refused)
    return Quantization(tuple(sorted(rows, key=lambda row: row["task"])), tuple(claims), about)


def _narrowed(lab: Lab, refused: dict[str, str]) -> Iterator[tuple[str, Lab]]:
    """A lab per scheme, on a quantized copy of the model; ``refused``: those this machine cannot compute, and why."""
    for scheme in SCHEMES:
        model = copy.deepcopy(lab.engine.model)
        try:
            quantize(model, scheme)
        except FlashUError as error:
            refused[scheme] = str(error)
            continue
        yield scheme, replace(lab, engine=Engine(model, lab.engine.processor, exact(), lab.calibration))
    if len(refused) == len(SCHEMES):
        raise FlashUError(next(iter(refused.values())))


def _row(task: str, label: str, sheet: ScoreTable, vanilla: ScoreTable | None, size: int) -> Row:
    overall = sheet.overall
    cells = {"task": task, "method": label} | scored("Overall", overall) | {"n": overall.n}
    change = None if vanilla is None else sheet.against(vanilla)
    return cells | compared(change) | {"weights MB": size / 1e6}
