"""What a harness' questions need before and after the engine; nothing here knows a harness."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image


def grouped(settings: Sequence[dict[str, Any]], size: int) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """Places of requests with equal settings, at most ``size`` at a time, and those settings."""
    same: dict[str, list[int]] = {}
    for place, wanted in enumerate(settings):
        same.setdefault(json.dumps(wanted, sort_keys=True, default=str), []).append(place)
    for places in same.values():
        for at in range(0, len(places), size):
            yield places[at : at + size], dict(settings[places[at]])


def beside(images: Sequence[Image.Image]) -> Image.Image:
    """Images in one row, each as high as the highest."""
    if len(images) == 1:
        return images[0].convert("RGB")
    height = max(image.height for image in images)
    fitted = [image.convert("RGB").resize((max(1, image.width * height // image.height), height)) for image in images]
    row = Image.new("RGB", (sum(image.width for image in fitted), height))
    left = 0
    for image in fitted:
        row.paste(image, (left, 0))
        left += image.width
    return row


def cut(text: str, until: str | Sequence[str] | None) -> str:
    """The answer up to the first stop word."""
    words = [until] if isinstance(until, str) else list(until or ())
    for word in words:
        if word:
            text = text.split(word)[0]
    return text.strip()
