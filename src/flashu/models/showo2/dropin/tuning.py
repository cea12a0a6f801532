"""Calibration on what the original's own scripts bring along: the first image drawn, the first question answered."""

from __future__ import annotations

import torch
from torch import Tensor

from flashu.inference.calibrate.attention import NormAgainstAttention
from flashu.inference.calibrate.calibration import Calibration
from flashu.inference.calibrate.importance import FFNNorms, wanda
from flashu.inference.loops.decode import decode
from flashu.inference.loops.denoise import denoise
from flashu.inference.prepared import Fitted
from flashu.inference.run import Run
from flashu.inference.samplers import flow
from flashu.models.showo2.dropin.drawing import Call, lay_out
from flashu.models.showo2.dropin.grid import SHIFT
from flashu.models.showo2.model import ShowO2
from flashu.models.weights import checkpoint_hash
from flashu.plan import LayerPlan, Task
from flashu.plan.recipe import exact
from flashu.runtime.runner import Runner
from flashu.runtime.tokens import Tokens


def lacks(fitted: Fitted, task: Task) -> bool:
    """Whether a recipe needs statistics of this task that are not there."""
    known = fitted.calibration
    scores = known.scores if known is not None else {}
    masks = {m.mask for m in fitted.recipe.ffn_prunes() if m.task == task}
    sided = any(m.task == task for m in fitted.recipe.token_prunes())
    return (task in masks and task not in scores) or (sided and (known is None or known.correlation is None))


def tune_on_drawing(fitted: Fitted, model: ShowO2, call: Call, forwards: int) -> None:
    """FFN importance over drawing these images with the full model; under a `reference` recipe over one pass of their
    conditional rows' text, placeholders included, as the released program has it."""
    norms = FFNNorms(model.num_layers)
    runner = Runner(model, observer=norms)
    with torch.inference_mode():
        if fitted.recipe.reference:
            canvas = lay_out(model, call, padded=True).branch(call.images)
            assert canvas.ids is not None
            runner.backbone(model.embed_text(canvas.ids.to(model.device)), canvas.tokens, LayerPlan())
        else:
            guidance = call.guidance if call.guidance > 0 else None
            run = Run(runner, exact(), "generation", forwards, guidance=guidance)
            denoise(run, lay_out(model, call, padded=False), call.drawn.float(), flow.grid(forwards, SHIFT))
    _keep(fitted, model, "generation", wanda(model, norms.norms()), f"drawing {call.images} images")


def tune_on_question(fitted: Fitted, model: ShowO2, x: Tensor, tokens: Tokens, most: int, stop: int | None) -> None:
    """FFN importance and the value norms' correlation over answering this question with the full model."""
    norms, attended = FFNNorms(model.num_layers), NormAgainstAttention(model.num_layers)

    def observe(layer: int, name: str, value: Tensor, seen: Tokens) -> None:
        norms(layer, name, value, seen)
        attended(layer, name, value, seen)

    run = Run(Runner(model, observer=observe), exact(), "understanding", most)
    for _ in decode(run, x, tokens, lambda logits: logits.argmax(-1), stop):
        pass
    _keep(fitted, model, "understanding", wanda(model, norms.norms()), "one question", attended.correlation())


def _keep(
    fitted: Fitted, model: ShowO2, task: Task, scores: Tensor, source: str, correlation: Tensor | None = None
) -> None:
    known = fitted.calibration or Calibration(checkpoint_hash(model))
    if correlation is not None:
        known = known.with_correlation(correlation)
    fitted.calibration = known.with_scores(task, scores, {"source": f"the caller's script, {source}"})
