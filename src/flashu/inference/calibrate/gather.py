"""The runs that calibration watches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flashu.errors import CalibrationError
from flashu.inference import requests
from flashu.inference.calibrate.attention import NormAgainstAttention
from flashu.inference.calibrate.importance import FFNNorms, wanda
from flashu.inference.loops.denoise import denoise
from flashu.inference.samplers import flow
from flashu.models.showo2.model import ShowO2
from flashu.models.showo2.processor import Picture, Processor
from flashu.plan import LayerPlan
from flashu.plan.recipe import exact
from flashu.runtime.runner import Runner
from flashu.runtime.sampling import choose
from flashu.runtime.tokens import Tokens


@torch.inference_mode()
def generation_scores(model: ShowO2, processor: Processor, prompts: Sequence[str]) -> Tensor:
    """FFN importance [layers, neurons] over every forward of drawing each prompt with the full model: real noisy
    latents, conditional and unconditional rows (paper section 3.3.1)."""
    norms = FFNNorms(model.num_layers)
    defaults = processor.defaults
    size = requests.latent_size(model, processor, defaults.height, defaults.width)
    runner = Runner(model, observer=norms)
    for n, prompt in enumerate(prompts):
        ids = [processor.text.prompt(prompt)]
        run, canvas = requests.drawing(runner, processor, exact(), ids, size, defaults.steps, defaults.guidance)
        z = flow.noise((model.config.image_latent_dim, *size), n)[None].to(model.device)
        denoise(run, canvas, z, flow.grid(run.forwards, defaults.shift))
    return _finite(wanda(model, norms.norms()))


@torch.inference_mode()
def text_only_scores(model: ShowO2, processor: Processor, prompt: str) -> Tensor:
    """FFN importance as the released program gathers it: one forward over the padded row's token embeddings, with
    placeholder embeddings where the image would be."""
    norms = FFNNorms(model.num_layers)
    defaults = processor.defaults
    size = requests.latent_size(model, processor, defaults.height, defaults.width)
    ids = [processor.text.prompt(prompt)]
    canvas = requests.drawing_rows(model, processor, ids, size, guided=False, padded=True)
    assert canvas.ids is not None
    x = model.embed_text(canvas.ids.to(model.device))
    Runner(model, observer=norms).backbone(x, canvas.tokens, LayerPlan())
    return _finite(wanda(model, norms.norms()))


@torch.inference_mode()
def understanding_statistics(
    model: ShowO2, processor: Processor, samples: Sequence[tuple[Picture, str]]
) -> tuple[Tensor, Tensor]:
    """Over answering each (image, question): FFN importance [layers, neurons], and per layer the correlation of
    attention received with value norm [layers]."""
    if not samples:
        raise CalibrationError("calibration needs at least one (image, question) pair")
    norms, attended = FFNNorms(model.num_layers), NormAgainstAttention(model.num_layers)

    def observe(layer: int, name: str, value: Tensor, tokens: Tokens) -> None:
        norms(layer, name, value, tokens)
        attended(layer, name, value, tokens)

    runner = Runner(model, observer=observe)
    for image, question in samples:
        _, stream = requests.asking(runner, processor, exact(), [image], [question], None, choose)
        for _ in stream:
            pass
    return _finite(wanda(model, norms.norms())), attended.correlation()


def _finite(scores: Tensor) -> Tensor:
    if not bool(scores.isfinite().all()):
        raise CalibrationError("the activations are not finite: the weights or the samples are unusable")
    return scores
