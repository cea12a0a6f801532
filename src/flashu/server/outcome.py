"""Images as they leave: encoded, and kept for a while where a URL was asked for."""

from __future__ import annotations

import io
import secrets
import threading
import time
from collections import OrderedDict

from PIL import Image

from flashu.server.schemas import FORMATS
from flashu.server.settings import ServeSettings


def encoded(image: Image.Image, kind: str, quality: int | None = None) -> bytes:
    """An image as a file; ``quality``: of jpeg and webp, default 90."""
    file = io.BytesIO()
    image.save(file, FORMATS[kind], **({} if kind == "png" else {"quality": 90 if quality is None else quality}))
    return file.getvalue()


class Kept:
    """Images by an address that cannot be guessed. The oldest go when there are too many, and all after a time."""

    def __init__(self, settings: ServeSettings) -> None:
        self._settings, self._lock = settings, threading.Lock()
        self._files: OrderedDict[str, tuple[float, bytes]] = OrderedDict()

    def put(self, data: bytes, kind: str) -> str:
        """The name under which `get` finds it."""
        name = f"{secrets.token_urlsafe(16)}.{kind}"
        with self._lock:
            self._files[name] = (time.monotonic(), data)
            self._clear()
        return name

    def get(self, name: str) -> bytes | None:
        with self._lock:
            self._clear()
            return self._files.get(name, (0.0, None))[1]

    def _clear(self) -> None:
        old = time.monotonic() - self._settings.kept_seconds
        while self._files and (len(self._files) > self._settings.kept or next(iter(self._files.values()))[0] < old):
            self._files.popitem(last=False)
