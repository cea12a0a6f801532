"""Calibration on what the original's own scripts bring along: the first images drawn, the first question answered."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from flashu.inference.calibrate.gather import UnderstandingWatch, observe, segment_scores
from flashu.inference.calibrate.importance import FFNNorms
from flashu.inference.prepared import PreparedRecipe
from flashu.inference.run import Run
from flashu.inference.samplers.flow import FlowSampler
from flashu.inference.samplers.solvers import grid
from flashu.models.showo2.dropin.drawing import Call, ImageRows, image_rows, shown
from flashu.models.showo2.dropin.grid import SHIFT
from flashu.models.showo2.dropin.talking import after
from flashu.models.showo2.model import ShowO2
from flashu.models.showo2.rows import text_alone
from flashu.plan.recipe import exact
from flashu.runtime.layout import Segment, TokenLayout


def learn_from_drawing(prepared: PreparedRecipe, model: ShowO2, call: Call, forwards: int) -> None:
    """FFN importance over drawing these images with the full model; under a `reference` recipe over one forward of
    their conditional rows' text, placeholders included, as the released program has it."""
    if prepared.recipe.reference:
        starts = call.positions[: call.images, 0, 0].tolist()
        texts = zip(call.ids[: call.images].tolist(), starts, strict=True)
        scores = segment_scores(model, [text_alone(ids, start, call.count) for ids, start in texts])
    else:
        norms = FFNNorms()
        with torch.inference_mode():
            for rows, latents in zip(image_rows(model, call, padded=False), call.drawn.float(), strict=True):
                observe(model, _exact_run(model, call, rows, latents, forwards), norms)
        scores = norms.scores(model)
    prepared.learn(model, "generation", scores, {"source": f"the caller's script, drawing {call.images} images"})


def learn_from_question(
    prepared: PreparedRecipe, model: ShowO2, x: Tensor, layout: TokenLayout, limit: int, stops: Collection[int]
) -> None:
    """FFN importance and the value norms' correlation over answering this question with the full model."""
    watch = UnderstandingWatch(model)
    with torch.inference_mode():
        observe(model, Run(after(x, layout, limit, stops), exact(), model.spec), watch)
    about = {"source": "the caller's script, one question"}
    prepared.learn(model, "understanding", watch.norms.scores(model), about, watch.attended.correlation())


def _exact_run(model: ShowO2, call: Call, rows: ImageRows, latents: Tensor, forwards: int) -> Run:
    def block(latents: Tensor, time: float) -> Segment:
        (image,) = shown(model, latents[None], torch.tensor([time]), call.count)
        return rows.block(image)  # type: ignore[return-value]

    sampler = FlowSampler(latents, grid(forwards, SHIFT), "euler", block)
    return Run(rows.actions(call.guidance, sampler), exact(), model.spec)
