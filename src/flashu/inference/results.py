"""What an engine gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from flashu.inference.run import StepTrace


@dataclass(frozen=True, eq=False)
class Generation:
    """Drawn images. ``latents``: what was drawn, one per image: for flow, [B, c, h, w] fp32, else codes [B, N]; a list
    where the images have unlike sizes. ``seeds`` one per image; ``traces``: one per image, with one entry per forward;
    ``thoughts``: what was thought before each, if it was asked for."""

    images: list[Image.Image]
    latents: Any
    prompts: list[str]
    seeds: list[int]
    traces: list[list[StepTrace]] = field(repr=False)
    thoughts: list[str] = field(default_factory=list)

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
