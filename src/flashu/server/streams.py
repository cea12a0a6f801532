"""Server-sent events, and how request bodies are described."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request

from flashu.server.errors import ApiError
from flashu.server.service import Service
from flashu.server.tickets import Ticket

SSE = "text/event-stream"
REF = "#/components/schemas/{model}"


def frame(data: dict[str, Any], event: str | None = None) -> bytes:
    head = "" if event is None else f"event: {event}\n"
    return f"{head}data: {json.dumps(data)}\n\n".encode()


async def listening(
    service: Service, request: Request, ticket: Ticket, frames: AsyncIterator[bytes]
) -> AsyncIterator[bytes]:
    """Submits a ticket, and waits until nothing can be wrong with its request any more; then the frames, whose end,
    however it comes, ends the job."""
    listed = service.listed(request, ticket)
    await listed.__aenter__()
    try:
        await ticket.started(request)
    except BaseException as error:
        await listed.__aexit__(type(error), error, error.__traceback__)
        raise

    async def stream() -> AsyncIterator[bytes]:
        try:
            async with aclosing(frames):  # type: ignore[type-var]
                async for one in frames:
                    yield one
        except ApiError as error:
            yield frame(error.body, "error")
        finally:
            await listed.__aexit__(None, None, None)

    return stream()


def body_of(kind: type[BaseModel], files: str | None = None) -> dict[str, Any]:
    """OpenAPI's description of a request body; ``files``: the field of a form that holds files."""
    if files is None:
        content: dict[str, Any] = {"application/json": {"schema": {"$ref": REF.format(model=kind.__name__)}}}
    else:
        file = {"type": "array", "items": {"type": "string", "format": "binary"}}
        shape = kind.model_json_schema(ref_template=REF)
        schema = shape | {"properties": {files: file, **shape["properties"]}, "required": [files, *shape["required"]]}
        content = {"multipart/form-data": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}}


def components(*kinds: type[BaseModel]) -> dict[str, Any]:
    """The schemas that bodies refer to."""
    found: dict[str, Any] = {}
    for kind in kinds:
        schema = kind.model_json_schema(ref_template=REF)
        found |= schema.pop("$defs", {})
        found[kind.__name__] = schema
    return found
