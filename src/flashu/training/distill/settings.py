"""Settings of a stage of few-step training."""

from __future__ import annotations

import math
from dataclasses import dataclass

from flashu.errors import FlashUError

STAGES = ("cfg", "regression", "dmdo")


@dataclass(frozen=True)
class Settings:
    """One run of one stage.

    ``stage``: "cfg", one pass gives what the guided teacher's two or three give together, at any time of the flow;
    "regression", a step over each of ``points`` segments of the flow goes where ``substeps`` guided Euler steps of the
    teacher go; "dmdo", what a step of the student's own path over ``points`` segments leads to is brought nearer to
    what the teacher draws than to what the student draws (distribution matching; Hyper-Bagel's third stage), which a
    fake model learns by ``fake_updates`` an update at the rate ``fake_lr``.

    ``steps``: updates. ``drawings``, ``edits``: rows of an update. ``text``, ``image``: ranges that the guidance scales
    are drawn from. ``shift`` moves times towards noise. The rate rises over ``warmup`` updates, then falls linearly to
    a twentieth. ``clip``: longest gradient. ``ema``: of the weights that are saved. ``precision``: "bf16" (autocast) or
    "fp32".
    """

    stage: str = "cfg"
    steps: int = 1000
    drawings: int = 64
    edits: int = 32
    points: int = 6
    substeps: int = 4
    fake_updates: int = 2
    fake_lr: float = 5e-4
    text: tuple[float, float] = (1.0, 5.0)
    image: tuple[float, float] = (1.0, 2.5)
    rank: int = 8
    alpha: float = 8.0
    lr: float = 1e-3
    warmup: int = 20
    shift: float = 3.0
    clip: float = 1.0
    ema: float = 0.98
    precision: str = "bf16"
    seed: int = 0
    save_every: int = 50

    def __post_init__(self) -> None:
        if self.stage not in STAGES:
            raise FlashUError(f"there is no stage {self.stage!r}: known are {', '.join(STAGES)}")
        if self.drawings < 0 or self.edits < 0 or not self.drawings + self.edits:
            raise FlashUError("an update needs rows: give drawings, edits or both")
        if min(self.steps, self.rank, self.warmup, self.save_every, self.points, self.substeps, self.fake_updates) < 1:
            raise FlashUError("steps, rank, warmup, points, substeps, fake_updates and save_every must be at least 1")
        if not (
            0 < self.lr < math.inf and 0 < self.fake_lr < math.inf and 0 < self.shift < math.inf and 0 <= self.ema < 1
        ):
            raise FlashUError("lr, fake_lr and shift must be above 0, ema in [0, 1)")
        if not all(1 <= low <= high for low, high in (self.text, self.image)):
            raise FlashUError("guidance scales are drawn from ranges (low, high) from 1 on")
        if self.precision not in ("bf16", "fp32"):
            raise FlashUError(f"precision must be bf16 or fp32, not {self.precision!r}")

    def rate(self, step: int) -> float:
        return self.lr * min(1.0, (step + 1) / self.warmup) * max(0.05, 1 - step / self.steps)

    def ranges(self, edit: bool) -> tuple[tuple[float, float], tuple[float, float]]:
        """Of the text's and the picture's guidance; without a picture there is nothing to guide by it."""
        return self.text, self.image if edit else (1.0, 1.0)
