"""The runs that calibration watches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flashu.errors import CalibrationError
from flashu.inference.actions import AnswerRequest, DrawRequest, Layout
from flashu.inference.calibrate.attention import NormAgainstAttention
from flashu.inference.calibrate.importance import FFNNorms
from flashu.inference.run import Run, complete
from flashu.models.pictures import Picture
from flashu.models.protocol import UnifiedModel
from flashu.plan import LayerPlan
from flashu.plan.recipe import exact
from flashu.runtime.executor import Executor
from flashu.runtime.layout import Segment, TokenLayout
from flashu.runtime.runner import Observer, Runner


@torch.inference_mode()
def generation_scores(model: UnifiedModel, layout: Layout, prompts: Sequence[str]) -> Tensor:
    """FFN importance [F, neurons] over every forward of drawing each prompt with the full model: real noisy latents,
    every guidance branch (FlashU section 3.3.1)."""
    norms = FFNNorms()
    for n, prompt in enumerate(prompts):
        (actions,) = layout.draw([DrawRequest(prompt, seed=n)], exact())
        observe(model, Run(actions, exact(), model.spec), norms)
    return norms.scores(model)


def text_only_scores(model: UnifiedModel, layout: Layout, prompt: str) -> Tensor:
    """FFN importance as the released program gathers it: one forward over the padded row's token embeddings, with
    placeholder embeddings where the image would be."""
    return segment_scores(model, [layout.padded_text(prompt)])


@torch.inference_mode()
def segment_scores(model: UnifiedModel, segments: Sequence[Segment]) -> Tensor:
    """FFN importance over one forward of each segment by itself."""
    norms = FFNNorms()
    runner = Runner(model, observer=norms)
    for segment in segments:
        runner.walk(model.embed([segment.content])[0][None], segment.layout, LayerPlan())
    return norms.scores(model)


@torch.inference_mode()
def understanding_statistics(
    model: UnifiedModel, layout: Layout, samples: Sequence[tuple[Picture, str]]
) -> tuple[Tensor, Tensor]:
    """Over answering each (image, question): FFN importance [F, neurons], and per layer the correlation of attention
    received with value norm [layers]."""
    if not samples:
        raise CalibrationError("calibration needs at least one (image, question) pair")
    watch = UnderstandingWatch(model)
    for image, question in samples:
        (actions,) = layout.answer([AnswerRequest(question, (image,))])
        observe(model, Run(actions, exact(), model.spec), watch)
    return watch.norms.scores(model), watch.attended.correlation()


class UnderstandingWatch:
    """Observer of answers: both statistics of a task that sees."""

    def __init__(self, model: UnifiedModel) -> None:
        self.norms, self.attended = FFNNorms(), NormAgainstAttention(model.spec.layers)

    def __call__(self, layer: int, expert: str, name: str, value: Tensor, layout: TokenLayout) -> None:
        self.norms(layer, expert, name, value, layout)
        self.attended(layer, expert, name, value, layout)


def observe(model: UnifiedModel, run: Run, observer: Observer) -> None:
    """Carry out a run under an observer."""
    complete(Executor(Runner(model, observer=observer)), [run])
