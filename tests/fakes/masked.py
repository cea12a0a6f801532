"""A family that draws by masked tokens: the same transformer, all codes of a picture in every forward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flashu.inference.actions import Action, Append, Draw, DrawRequest
from flashu.inference.samplers.masked import MaskedSampler
from flashu.inference.samplers.noise import Noise
from flashu.plan import MAIN, Guidance
from flashu.plan.explain import Sizes
from flashu.runtime.layout import Segment, TokenLayout
from tests.fakes.tokens import BOI, BOS, CODES, EOL, SIDE, Processor, TokenModel, TokenModelLayout, ids_of, text_segment

COUNT = SIDE * SIDE
MASK = EOL  # drawn pictures have no end of line, so its token can mean "unknown"


class MaskedModel(TokenModel):
    spec = replace(TokenModel.spec, family="fake-masked", drawing="masked", context="same")

    def layout(self, processor: Processor) -> Any:
        return MaskedLayout(processor)


class MaskedLayout(TokenModelLayout):
    edits = False

    def _drawing(self, request: DrawRequest) -> list[Action]:
        guidance = self.defaults.guidance if request.guidance is None else request.guidance
        scales = {} if guidance in (0, 1) else {"uncond": guidance}
        noise = Noise(request.seed)
        layout = TokenLayout.causal([COUNT], (("image", 0, COUNT),)).block(0, COUNT)

        def block(ids: Tensor) -> Segment:
            return Segment(ids, layout, COUNT)

        def sampler(forwards: int, solver: str) -> MaskedSampler:
            return MaskedSampler(torch.full((COUNT,), MASK), forwards, CODES, MASK, block, noise)

        steps = request.steps or 8
        prompts: Sequence[Action] = (
            Append((MAIN,), (text_segment([BOS, *ids_of(request.prompt), BOI]),)),
            Append(("uncond",), (text_segment([BOS, BOI]),)),
        )
        return [*prompts, Draw(Guidance(scales), steps, sampler)]

    def sizes(self, name: str) -> Sizes:
        return Sizes(name, MaskedModel.spec, self.defaults, lambda h, w: COUNT, lambda count: count, None)


def seeded(cls: type[TokenModel]) -> TokenModel:
    """A model whose random weights are the same every time, and large enough that every token matters."""
    torch.manual_seed(0)
    model = cls()
    for layer in model.layers:
        for parameter in layer.parameters():
            parameter.mul_(3 if parameter.ndim == 2 else 1)
    return model
