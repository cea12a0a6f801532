"""BAGEL's guidance: a scale for the text, one for the pictures, and a guided velocity no longer than the unguided."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from flashu.errors import FlashUError
from flashu.models.bagel.spec import IMAGE, TEXT
from flashu.models.bagel.vision import patches, unpatched
from flashu.plan import MAIN, Guidance
from flashu.plan.limits import check_number

RENORMS = ("global", "channel", "text_channel")


@dataclass(frozen=True)
class Steering:
    """How guidance is run: scales of the branches without the text and without the pictures, the flow times (after,
    until; 1 is noise) that guide, and how the guided velocity is brought back to the length of the unguided one:
    "global", by one norm; "channel", token by token; "text_channel", token by token before the pictures' part.
    ``renorm_min``: the least factor, 1 = off.
    """

    text: float = 4.0
    image: float = 1.5
    interval: tuple[float, float] = (0.4, 1.0)
    renorm: str = "global"
    renorm_min: float = 0.0

    def __post_init__(self) -> None:
        for scale in (self.text, self.image):
            if scale is None:
                raise FlashUError("a guidance scale must be a number")
            check_number("guidance", scale)
        if self.renorm not in RENORMS:
            raise FlashUError(f"there is no renorm {self.renorm!r}: known are {', '.join(RENORMS)}")
        try:
            low, high = (float(at) for at in self.interval)
        except (TypeError, ValueError) as error:
            raise FlashUError(f"a guidance interval is two flow times, not {self.interval!r}") from error
        if not 0 <= low <= high <= 1 or not 0 <= self.renorm_min <= 1:
            raise FlashUError("the guidance interval and renorm_min lie within 0 and 1")
        object.__setattr__(self, "interval", (low, high))

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Steering:
        if unknown := sorted(set(data) - {f.name for f in fields(cls)}):
            raise ValueError(f"unknown guidance settings {', '.join(unknown)}")
        return cls(**data)

    def changed(self, **settings: Any) -> Steering:
        """With the settings that are not None."""
        return replace(self, **{name: value for name, value in settings.items() if value is not None})

    def guidance(self, patch: int) -> Guidance:
        """``patch``: side of a latent token in cells. Without a text scale above 1, the original guides by nothing."""
        scales = {}
        if self.text > 1:
            scales = {TEXT: self.text} | ({IMAGE: self.image} if self.image > 1 else {})
        return Guidance(scales, mirrored(self.interval), partial(steered, self, patch))


def mirrored(interval: tuple[float, float]) -> tuple[float, float]:
    """Times (after, until) where 1 is noise, compared in fp32, as those of samplers, where 0 is noise: the other end is
    then the one that is taken in."""
    low, high = torch.tensor(interval, dtype=torch.float32).tolist()
    return math.nextafter(1 - high, -math.inf), math.nextafter(1 - low, -math.inf)


def steered(how: Steering, patch: int, predictions: Mapping[str, Tensor], scales: Mapping[str, float]) -> Tensor:
    """The guided velocity [z, h, w] of one sample."""
    main = guided = predictions[MAIN]
    if TEXT in scales:
        guided = predictions[TEXT] + scales[TEXT] * (main - predictions[TEXT])
        if how.renorm == "text_channel":
            guided = renormed(guided, main, how, patch)
    if IMAGE in scales:
        guided = predictions[IMAGE] + scales[IMAGE] * (guided - predictions[IMAGE])
    return renormed(guided, main, how, patch) if scales and how.renorm != "text_channel" else guided


def renormed(guided: Tensor, main: Tensor, how: Steering, patch: int) -> Tensor:
    """``guided``, shrunk to the norm of ``main`` if it is longer."""
    if how.renorm == "global":
        return guided * _shrink(main.norm(), guided.norm(), how)
    a, b = (patches(x[None], patch) for x in (main, guided))
    scaled = b * _shrink(a.norm(dim=-1, keepdim=True), b.norm(dim=-1, keepdim=True), how)
    rows, columns = (side // patch for side in main.shape[-2:])
    return unpatched(scaled, patch, rows, columns)[0]


def _shrink(wanted: Tensor, is_now: Tensor, how: Steering) -> Tensor:
    return (wanted / (is_now + 1e-8)).clamp(how.renorm_min, 1.0)
