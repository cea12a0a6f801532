"""What eight-bit weights cost in quality: each scheme of `models.quantize` beside the full weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import cast

from torch import nn

from flashu.errors import FlashUError
from flashu.evaluation.scenes_items import drawn_world
from flashu.evaluation.score_table import ScoreTable
from flashu.evaluation.statistics import Difference
from flashu.inference.engine import Engine
from flashu.models.memory import held_bytes
from flashu.models.quantize import SCHEMES, quantize
from flashu.plan.recipe import exact
from flashu.studies.lab import figures
from flashu.studies.lab.cases import VANILLA, vanilla
from flashu.studies.lab.lab import Lab, Suite
from flashu.studies.lab.result import Claim, Result, Row, compared, loss_within, scored

LOSS = -0.02
"""The change of a score that is still called none."""


def quantization(lab: Lab) -> Result:
    """GenEval and the five question suites, under the exact recipe."""
    drawn_world(lab.engine)  # its images can be scored
    suites: dict[str, Suite] = {"generation": lab.geneval, "understanding": lab.und}
    base = {task: lab.score(vanilla(), suite) for task, suite in suites.items()}
    rows = [_row(task, VANILLA, scores, None, lab) for task, (scores, _) in base.items()]
    claims: list[Claim] = []
    refused: dict[str, str] = {}
    for scheme, other in _quantized(lab, refused):
        for task, suite in suites.items():
            scores, drawn = other.score(vanilla(), suite)
            change = scores.against(base[task][0])
            fidelity = lab.fidelity(drawn, base[task][1]) if drawn else None
            row = _row(task, scheme, scores, change, other)
            rows.append(row if fidelity is None else row | {"PSNR dB": fidelity.psnr})
            claims.append(Claim(f"{scheme} loses nothing at {task}", str(change), loss_within(change, LOSS)))
    about = lab.about(images=len(lab.geneval.texts), questions=len(lab.und.items), refused=refused)
    rows.sort(key=lambda row: row["task"])
    title = "Quantization: eight-bit weights against full ones"
    return Result(title, rows, claims, about, figures.quantization, 3.8)


def _quantized(lab: Lab, refused: dict[str, str]) -> Iterator[tuple[str, Lab]]:
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


def _row(task: str, label: str, scores: ScoreTable, change: Difference | None, lab: Lab) -> Row:
    overall, model = scores.overall, cast(nn.Module, lab.engine.model)
    cells = {"task": task, "method": label} | scored("Overall", overall) | {"n": overall.n} | compared(change)
    return cells | {"weights MB": held_bytes(model) / 1e6}
