"""The least and the most of every number of a request, for the engine, `explain` and the command line alike."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from flashu.errors import FlashUError


@dataclass(frozen=True)
class Limit:
    """``least`` to ``most``, and the ``reason`` not to allow more. ``whole``: whole numbers only."""

    least: int
    most: int
    reason: str
    whole: bool = True


PIXELS = Limit(1, 4096, "4096 x 4096 pixels are 65536 image tokens, and released checkpoints draw up to 1024 x 1024")
TOKENS = Limit(1, 32_768, "the language models have 32768 positions")
LIMITS = {
    "steps": Limit(1, 10_000, "released settings take 20 to 100 forwards"),
    "guidance": Limit(0, 1000, "released settings go up to 10", whole=False),
    "height": PIXELS,
    "width": PIXELS,
    "images_per_prompt": Limit(1, 10_000, "all of them are listed in memory before the first is begun"),
    "batch_size": Limit(1, 1024, "a batch is held in memory as a whole"),
    "max_new_tokens": TOKENS,
    "max_think_tokens": TOKENS,
    "prompt_tokens": TOKENS,
    "question_tokens": TOKENS,
}
"""By the name of the argument."""


def check_shift(value: Any) -> None:
    """`FlashUError` unless a shift of the flow's times is a number that leaves them apart; None always is."""
    real: Any = Real
    if value is not None and (not isinstance(value, real) or not 1e-3 <= value <= 1e3):
        raise FlashUError(f"shift must be a number from 0.001 to 1000, got {value!r:.80}: released settings are 1 to 7")


def check_number(name: str, value: Any) -> None:
    """`FlashUError` unless a number is within its limit; None, the model's default, always is."""
    if value is None:
        return
    limit = LIMITS[name]
    number: Any = Integral if limit.whole else Real
    if not isinstance(value, number) or isinstance(value, bool) or not limit.least <= value < float("inf"):
        kind = "whole" if limit.whole else "finite"
        raise FlashUError(f"{name} must be a {kind} number of at least {limit.least}, got {value!r:.80}")
    if value > limit.most:
        raise FlashUError(f"{name} is {value}, beyond {limit.most}: {limit.reason}")
