"""What an engine gives back."""

from __future__ import annotations

from dataclasses import dataclass, field

from PIL import Image
from torch import Tensor

from flashu.inference.run import StepTrace


@dataclass(frozen=True, eq=False)
class Generation:
    """Drawn images. ``latents``: what was drawn, one per image: for flow, [B, c, h, w] fp32, else codes [B, N].
    ``seeds`` one per image; ``traces``: one per image, with one entry per forward."""

    images: list[Image.Image]
    latents: Tensor
    prompts: list[str]
    seeds: list[int]
    traces: list[list[StepTrace]] = field(repr=False)

    @property
    def trace(self) -> list[StepTrace]:
        """The forwards of the first image."""
        return self.traces[0]


@dataclass(frozen=True, eq=False)
class Answer:
    """One answer. ``tokens`` are the ids decoded to ``text``; ``trace`` has one entry per forward."""

    text: str
    tokens: list[int]
    trace: list[StepTrace] = field(repr=False)
