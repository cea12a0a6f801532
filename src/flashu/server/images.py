"""POST /v1/images/generations and /v1/images/edits, and the images that a URL was asked for."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from PIL import Image

from flashu.server.errors import ApiError
from flashu.server.guard import RESULTS
from flashu.server.intake import opened
from flashu.server.jobs import Drawn, Said, Stepped
from flashu.server.outcome import encoded
from flashu.server.requests import form_of, json_of, values_of
from flashu.server.schemas import Drawing, Edit, Generate, read
from flashu.server.service import Service, measured
from flashu.server.streams import SSE, body_of, frame, listening
from flashu.server.tickets import Ticket

MIME = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}


def router(service: Service) -> APIRouter:
    routes = APIRouter(tags=["images"])

    @routes.post("/v1/images/generations", summary="Draw images of a prompt", openapi_extra=body_of(Generate))
    async def generations(request: Request) -> Response:
        body, own = read(Generate, await json_of(request), service.layout.settings)
        return await drawn(service, request, body, body.prompt, (), own, "image_generation")

    @routes.post("/v1/images/edits", summary="Change images as a prompt says", openapi_extra=body_of(Edit, "image[]"))
    async def edits(request: Request) -> Response:
        fields, files = await form_of(request, service.settings.images)
        body, own = read(Edit, values_of(fields, service.layout.settings), service.layout.settings)
        images = [await asyncio.to_thread(opened, file, service.settings, "image") for file in files]
        return await drawn(service, request, body, body.prompt, images, own, "image_edit")

    @routes.get(RESULTS + "{name}", summary="An image of response_format url")
    async def result(name: str) -> Response:
        data = service.kept.get(name)
        if data is None:
            raise ApiError(404, "there is no such image, or no longer")
        return Response(data, media_type=MIME[name.rpartition(".")[2]], headers={"Cache-Control": "private"})

    return routes


async def drawn(
    service: Service,
    request: Request,
    body: Drawing,
    prompt: str,
    images: Sequence[Image.Image],
    own: Mapping[str, Any],
    kind: str,
) -> Response:
    """Carry out a request to draw, and answer it in the OpenAI shape."""
    job, about = service.drawing(body, prompt, images, own, "prompt", "image")
    ticket = Ticket(service.scheduler, job)
    about |= {"response_format": body.response_format, "output_format": body.output_format}
    if body.stream:
        first = listening(service, request, ticket, _streamed(ticket, body, about, kind))
        return StreamingResponse(await first, media_type=SSE)
    async with service.listed(request, ticket):
        results = [r for r in await ticket.results(request) if isinstance(r, Drawn)]
    results.sort(key=lambda result: result.sample)
    about["size"] = _size(results[0])
    data = [await _item(service, request, body, result) for result in results]
    return JSONResponse({"created": int(time.time()), "data": data, **_echo(body, about), "flashu": about})


def _size(result: Drawn) -> str:
    return f"{result.image.width}x{result.image.height}"


def _thought(result: Drawn) -> dict[str, str]:
    return {"thought": result.thought} if result.thought else {}


def _echo(body: Drawing, about: dict[str, Any]) -> dict[str, Any]:
    """What OpenAI's own answer says of its settings."""
    return {"size": about["size"], "output_format": body.output_format}


async def _item(service: Service, request: Request, body: Drawing, result: Drawn) -> dict[str, Any]:
    data = await asyncio.to_thread(encoded, result.image, body.output_format, body.output_compression)
    own = {"seed": body.seed + result.sample, **measured(result.work), **_thought(result)}
    if body.response_format == "url":
        name = service.kept.put(data, body.output_format)
        return {"url": f"{str(request.base_url).rstrip('/')}{RESULTS}{name}", "flashu": own}
    return {"b64_json": base64.b64encode(data).decode(), "flashu": own}


async def _streamed(ticket: Ticket, body: Drawing, about: dict[str, Any], kind: str) -> AsyncIterator[bytes]:
    """OpenAI's events of a drawing: partial images, then completed ones; and flashu's own, a step each."""
    shown: dict[int, int] = {}

    async def picture(image: Image.Image) -> str:
        data = await asyncio.to_thread(encoded, image, body.output_format, body.output_compression)
        return base64.b64encode(data).decode()

    async for event in ticket.events():
        if event is None:
            yield b": \n\n"
        elif isinstance(event, Stepped):
            where = {"sample": event.sample, "step": event.step, "steps": event.total}
            if event.preview is None:
                yield frame({"type": "flashu.step", **where}, "flashu.step")
                continue
            number = shown[event.sample] = shown.get(event.sample, -1) + 1
            name = f"{kind}.partial_image"
            common = {"type": name, "created_at": int(time.time()), **_echo(body, about), "flashu": where}
            yield frame({**common, "b64_json": await picture(event.preview), "partial_image_index": number}, name)
        elif isinstance(event, Said):
            yield frame({"type": "flashu.thought", "sample": event.sample, "text": event.text}, "flashu.thought")
        elif isinstance(event, Drawn):
            name = f"{kind}.completed"
            own = about | {"size": _size(event), "sample": event.sample, "seed": body.seed + event.sample}
            own |= measured(event.work) | _thought(event)
            common = {"type": name, "created_at": int(time.time()), **_echo(body, own), "flashu": own}
            yield frame({**common, "b64_json": await picture(event.image)}, name)
