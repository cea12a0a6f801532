"""The bodies of requests, read strictly."""

from __future__ import annotations

import json
from collections.abc import Set
from contextlib import suppress
from typing import Any

from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request

from flashu.server.errors import ApiError

IMAGES = ("image", "image[]")


async def json_of(request: Request) -> Any:
    """The JSON object of a request, each name once."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, "send the body as application/json")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise ApiError(400, f"{name[:100]}: given twice", name[:100])
            found[name] = value
        return found

    try:
        return json.loads(await request.body(), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "the body is not valid JSON") from error


def values_of(texts: dict[str, str], names: Set[str]) -> dict[str, Any]:
    """Texts of a form, those of some names as the JSON that they are, if they are."""
    found: dict[str, Any] = dict(texts)
    for name in names & texts.keys():
        with suppress(ValueError, RecursionError):
            found[name] = json.loads(texts[name])
    return found


async def form_of(request: Request, most: int) -> tuple[dict[str, str], list[bytes]]:
    """The texts and the images of a form, each text once, ``most`` images."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
        raise ApiError(415, "send the body as multipart/form-data")
    try:
        form: FormData = await request.form(max_files=most + 1, max_fields=64, max_part_size=1 << 20)
    except (HTTPException, MultiPartException, ValueError, KeyError) as error:
        raise ApiError(400, "the body is not a valid form, or has too many parts") from error
    texts: dict[str, str] = {}
    files: list[bytes] = []
    try:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                if name not in IMAGES:
                    raise ApiError(400, f"{name[:100]}: no file of this request, send image or image[]", name[:100])
                files.append(await value.read())
            elif name in IMAGES:
                raise ApiError(400, "image: must be a file", "image")
            elif name in texts:
                raise ApiError(400, f"{name[:100]}: given twice", name[:100])
            else:
                texts[name] = value
    finally:
        await form.close()
    if not files:
        raise ApiError(400, "image: missing", "image")
    if len(files) > most:
        raise ApiError(400, f"image: at most {most} images a request", "image")
    return texts, files
