"""Figures 2 and 4: how similar a layer's input and output are, by layer, step and kind of token, for both tasks."""

from __future__ import annotations

from statistics import fmean

from flashu.plan import TASKS
from flashu.studies.lab import figures
from flashu.studies.lab.figures import groups, mean_by_layer
from flashu.studies.lab.inner import LayerSimilarity, observe
from flashu.studies.lab.lab import Lab
from flashu.studies.lab.result import Claim, Result, Row, holds


def similarity(lab: Lab) -> Result:
    """Observed while the full model draws and answers ``lab.size.samples`` requests."""
    rows: list[Row] = []
    for task in TASKS:
        observer = LayerSimilarity(task)
        observe(lab.engine, task, lab.size.samples, observer, observer.at)
        rows += observer.rows()
    about = lab.about(samples=lab.size.samples)
    return Result("Figures 2 and 4: layer similarity", rows, _claims(rows), about, figures.similarity, 4.0)


def _claims(rows: list[Row]) -> list[Claim]:
    tasks = groups(rows, "task")
    image, last = mean_by_layer(tasks["generation"])["image"], mean_by_layer(tasks["understanding"])["last"]
    drawing, answering = (fmean(curve[n] for n in sorted(image)[1:-1]) for curve in (image, last))
    return [
        Claim(
            "layers are highly redundant while drawing: inputs and outputs are much alike",
            f"image tokens: cosine {min(image.values()):.3f} to {max(image.values()):.3f} over the layers, "
            f"{drawing:.3f} between the first and the last",
            holds(drawing > 0.9),
        ),
        Claim(
            "key tokens of understanding evolve more with depth than image tokens of drawing do",
            f"between the first and the last layer: last token {answering:.3f}, image tokens while drawing "
            f"{drawing:.3f}",
            holds(answering < drawing),
        ),
    ]
