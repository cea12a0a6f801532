"""Images that come with a request: small enough, of a known kind, from nowhere that was not allowed."""

from __future__ import annotations

import base64
import binascii
import io
import re
import urllib.request
import warnings
from collections.abc import Sequence
from http.client import HTTPMessage
from typing import IO, Any
from urllib.parse import urlsplit

from PIL import Image, UnidentifiedImageError

from flashu.server.errors import ApiError
from flashu.server.settings import ServeSettings

KINDS = ("PNG", "JPEG", "WEBP")
DATA_URL = re.compile(r"data:image/(?:png|jpeg|jpg|webp);base64,", re.ASCII)
FETCH_SECONDS = 10


def opened(data: bytes, settings: ServeSettings, param: str) -> Image.Image:
    """The picture in a file's bytes. Its size is read, and checked, before anything is decompressed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=KINDS)
            if image.width * image.height > settings.pixels:
                size = f"{image.width}x{image.height}"
                raise ApiError(400, f"{param}: {size} pixels are more than the {settings.pixels} allowed", param)
            if getattr(image, "n_frames", 1) > 1:
                raise ApiError(400, f"{param}: an animation, send one image", param)
            image.load()
    except (UnidentifiedImageError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ApiError(400, f"{param}: no PNG, JPEG or WebP image that can be read", param) from error
    except (OSError, SyntaxError, ValueError, MemoryError) as error:  # damaged, in the ways Pillow has of saying so
        raise ApiError(400, f"{param}: a damaged image", param) from error
    image.info = {}
    return image.convert("RGB")


def of_url(url: str, settings: ServeSettings, param: str) -> Image.Image:
    """The picture of a data URL, or of an address on an allowed host."""
    if (found := DATA_URL.match(url)) is not None:
        try:
            data = base64.b64decode(url[found.end() :], validate=True)
        except (binascii.Error, ValueError) as error:
            raise ApiError(400, f"{param}: the data URL is not valid base64", param) from error
        return opened(data, settings, param)
    if url.startswith("data:"):
        raise ApiError(400, f"{param}: a data URL must be data:image/png (or jpeg, webp);base64,...", param)
    return opened(fetched(url, settings.fetch_hosts, settings.body, param), settings, param)


class _Stay(urllib.request.HTTPRedirectHandler):
    """No address is followed to another."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> None:
        return None


def fetched(url: str, hosts: Sequence[str], most: int, param: str) -> bytes:
    """What is at an address, if its host is one of ``hosts``; no redirect, proxy or other scheme."""
    try:
        parts = urlsplit(url)
        host, port, user = parts.hostname, parts.port, parts.username
    except ValueError as error:
        raise ApiError(400, f"{param}: not an address", param) from error
    if parts.scheme not in ("http", "https") or host is None or user is not None:
        raise ApiError(400, f"{param}: send the image as a data URL", param)
    if host not in hosts and f"{host}:{port}" not in hosts:
        raise ApiError(400, f"{param}: images are not fetched from {host[:100]!r}: send a data URL", param)
    opener: Any = urllib.request.build_opener(_Stay, urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=FETCH_SECONDS) as answer:
            data = answer.read(most + 1)
    except (OSError, ValueError) as error:
        raise ApiError(400, f"{param}: the image could not be fetched", param) from error
    if len(data) > most:
        raise ApiError(400, f"{param}: the image has more than {most} bytes", param)
    return data
