"""What a harness' questions need before and after the engine; nothing here knows a harness."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from PIL import Image

from flashu.errors import FlashUError
from flashu.inference.actions import AnswerRequest
from flashu.models.video import Video
from flashu.models.words import IMAGE


def grouped(settings: Sequence[dict[str, Any]], size: int) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """Places of requests with equal settings, at most ``size`` at a time, and those settings."""
    same: dict[str, list[int]] = {}
    for place, wanted in enumerate(settings):
        same.setdefault(json.dumps(wanted, sort_keys=True, default=str), []).append(place)
    for places in same.values():
        for at in range(0, len(places), size):
            yield places[at : at + size], dict(settings[places[at]])


def request_of(messages: Sequence[Mapping[str, Any]], most: int | None, limit: int | None) -> AnswerRequest:
    """A question of messages, whose contents are texts ({"type": "text", "text"}), images and videos ({"type", "url"})
    in any order. ``most``: pictures that a model takes (`ModelSpec.pictures`); more are shown to it side by side,
    before the text. ``limit``: its ``max_new_tokens``. `FlashUError` for other contents."""
    lines: list[str] = []
    shown: list[Any] = []
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        line = ""
        for part in parts:
            kind = part["type"]
            if kind == "text":
                line += part["text"].replace(IMAGE, "")
            elif kind in ("image", "video"):
                shown.append(part["url"] if kind == "image" else _video(part["url"]))
                line += IMAGE
            else:
                raise FlashUError(f"a question with {kind} cannot be answered here")
        lines.append(line.strip())
    text = "\n".join(line for line in lines if line)
    if most is not None and len(shown) > most:
        if not all(isinstance(one, Image.Image) for one in shown):
            raise FlashUError(f"this model takes {most} pictures or videos in a question, not {len(shown)}")
        shown = [beside(shown)]
        text = text.replace(IMAGE, "")
    words = text.lstrip("\n")
    if words.startswith(IMAGE * len(shown)):  # all before the text, which needs no places
        text = words.removeprefix(IMAGE * len(shown))
    return AnswerRequest(text.strip(), tuple(shown), limit)


def _video(url: Any) -> Video:
    return url if isinstance(url, Video) else Video.open(url)


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
