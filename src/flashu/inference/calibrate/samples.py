"""What to calibrate on when nobody says: procedural scenes, the same on every machine."""

from __future__ import annotations

from PIL import Image

from flashu.scenes import benchmark
from flashu.scenes.world import SCENES, World, render

SAMPLES = 20
"""Understanding samples by default (paper Table 8)."""
PROMPT = "a red circle above a blue square"
"""Drawn when generation is calibrated before any prompt is known."""


def questions(count: int = SAMPLES, world: World | None = None) -> list[tuple[Image.Image, str]]:
    """``count`` (image, question) pairs over all question kinds, from the training side of the scenes."""
    world = world or SCENES
    per_kind = -(-count // len(benchmark.QUESTION_KINDS))
    kinds = benchmark.QUESTION_KINDS
    asked = [q for kind in kinds for q in benchmark.questions(kind, per_kind, seed=7, split="train", world=world)]
    every = asked[:: max(1, len(asked) // count)][:count]
    pictures = render([q.scene for q in every])
    return [(Image.fromarray(picture), q.text) for picture, q in zip(pictures, every, strict=True)]
