"""POST /v1/chat/completions: questions about images and messages; or, with modalities ["image"], drawings."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from PIL import Image

from flashu.models.words import IMAGE
from flashu.server.errors import ApiError
from flashu.server.intake import of_url
from flashu.server.jobs import Answered, Drawn, JobEvent, Said, Stepped
from flashu.server.outcome import encoded
from flashu.server.requests import json_of
from flashu.server.schemas import Chat, TextPart, read
from flashu.server.service import Service, measured
from flashu.server.streams import SSE, body_of, frame, listening
from flashu.server.tickets import Ticket


def router(service: Service) -> APIRouter:
    routes = APIRouter(tags=["chat"])

    @routes.post("/v1/chat/completions", summary="Answer a message or a question", openapi_extra=body_of(Chat))
    async def completions(request: Request) -> Response:
        body, own = read(Chat, await json_of(request), service.layout.settings)
        draws = body.modalities == ["image"]
        if own and not draws:
            name = next(iter(own))
            raise ApiError(400, f'{name}: is for modalities ["image"]', name)
        text, images = await asked(service, body, places=not draws)
        if draws:
            job, about = service.drawing(body, text, images, own, "messages", "messages")
        else:
            job, about = service.answering(body, text, images)
        ticket = Ticket(service.scheduler, job)
        reply = Reply(service, body, about, job.id)
        if body.stream:
            frames = listening(service, request, ticket, reply.stream(ticket))
            return StreamingResponse(await frames, media_type=SSE)
        async with service.listed(request, ticket):
            results = await ticket.results(request)
        return JSONResponse(await asyncio.to_thread(reply.whole, results))

    return routes


async def asked(service: Service, body: Chat, places: bool) -> tuple[str, list[Image.Image]]:
    """The text and the images of the message. Images stand before a single text, as models are trained; with
    ``places``, those of several texts stand where they were sent."""
    content = body.messages[0].content
    if IMAGE in (content if isinstance(content, str) else "".join(p.text for p in content if isinstance(p, TextPart))):
        raise ApiError(400, f"messages: {IMAGE} is no text: send images as parts of the message", "messages")
    if isinstance(content, str):
        return content, []
    texts = [part.text for part in content if isinstance(part, TextPart)]
    urls = [part.image_url.url for part in content if not isinstance(part, TextPart)]
    if not "".join(texts).strip():
        raise ApiError(400, "messages: there is no text in it", "messages")
    if len(urls) > service.settings.images:
        raise ApiError(400, f"messages: at most {service.settings.images} images a request", "messages")
    images = [await asyncio.to_thread(of_url, url, service.settings, "messages") for url in urls]
    if not places or len(texts) == 1:
        return "\n".join(texts), images
    return "\n".join(part.text if isinstance(part, TextPart) else IMAGE for part in content), images


class Reply:
    """A completion in the OpenAI shape, whole or in chunks."""

    def __init__(self, service: Service, body: Chat, about: dict[str, Any], job: str) -> None:
        self.body, self.about = body, about
        self.head = {"id": f"chatcmpl-{job}", "created": int(time.time()), "model": service.name}

    def whole(self, events: Sequence[JobEvent]) -> dict[str, Any]:
        results = sorted((e for e in events if isinstance(e, Answered | Drawn)), key=lambda e: e.sample)
        choices = []
        for result in results:
            content: Any = result.text if isinstance(result, Answered) else [_shown(result.image)]
            choices.append(
                {
                    "index": result.sample,
                    "message": {"role": "assistant", "content": content, "refusal": None},
                    "finish_reason": _reason(result),
                    "logprobs": None,
                    "flashu": self._own(result),
                }
            )
        usage = _usage(results)
        return {**self.head, "object": "chat.completion", "choices": choices, "usage": usage, "flashu": self.about}

    async def stream(self, ticket: Ticket) -> AsyncIterator[bytes]:
        results: list[Answered | Drawn] = []
        for n in range(self.body.n):
            yield self._chunk(n, {"role": "assistant", "content": ""})
        async for event in ticket.events():
            if event is None:
                yield b": \n\n"
            elif isinstance(event, Said):
                yield self._chunk(event.sample, {"content": event.text})
            elif isinstance(event, Stepped):
                step = {"step": event.step, "steps": event.total}
                yield self._chunk(event.sample, {}, flashu=step)
            elif isinstance(event, Answered | Drawn):
                results.append(event)
                if isinstance(event, Drawn):
                    image = await asyncio.to_thread(_shown, event.image)
                    yield self._chunk(event.sample, {"content": [image]})
                own = self.about | self._own(event)
                yield self._chunk(event.sample, {}, _reason(event), flashu=own)
        options = self.body.stream_options
        if options is not None and options.include_usage:
            usage = {"object": "chat.completion.chunk", "choices": [], "usage": _usage(results)}
            yield frame({**self.head, **usage})
        yield b"data: [DONE]\n\n"

    def _chunk(
        self, index: int, delta: dict[str, Any], reason: str | None = None, flashu: dict[str, Any] | None = None
    ) -> bytes:
        choice = {"index": index, "delta": delta, "finish_reason": reason, "logprobs": None}
        more = {} if flashu is None else {"flashu": flashu}
        return frame({**self.head, "object": "chat.completion.chunk", "choices": [choice], **more})

    def _own(self, result: Answered | Drawn) -> dict[str, Any]:
        return {"seed": self.body.seed + result.sample, **measured(result.work)}


def _reason(result: Answered | Drawn) -> str:
    return "stop" if isinstance(result, Drawn) or result.stopped else "length"


def _shown(image: Image.Image) -> dict[str, Any]:
    data = base64.b64encode(encoded(image, "png")).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def _usage(results: Sequence[Answered | Drawn]) -> dict[str, int]:
    said = [result for result in results if isinstance(result, Answered)]
    prompt = said[0].work.prompt_tokens if said else 0
    completion = sum(result.tokens for result in said)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
