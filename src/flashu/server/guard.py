"""What stands before every request: who may call, how much may be sent, and how long that may take."""

from __future__ import annotations

import asyncio
import hmac
import json
import re
import time
import uuid
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flashu.server.errors import ApiError
from flashu.server.metrics import Metrics
from flashu.server.settings import ServeSettings

OPEN = frozenset(("/", "/page.js", "/page.css", "/docs", "/docs.js", "/openapi.json", "/health", "/ready"))
"""Paths that need no key: they say nothing of anybody's requests."""
RESULTS = "/v1/images/results/"
"""Addresses below it are secrets themselves."""
ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
SAFE = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (
        b"content-security-policy",
        b"default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'none'; base-uri 'none'",
    ),
]


class Guard:
    """Middleware: checks the name the server was called by (against DNS rebinding), the page that calls (against other
    sites' pages), the key; counts the body's bytes and the time it takes; names and counts each request."""

    def __init__(self, app: ASGIApp, settings: ServeSettings, metrics: Metrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get("x-request-id")
        name = given if given is not None and ID.fullmatch(given) else uuid.uuid4().hex
        scope["state"] = {**scope.get("state", {}), "id": name}
        status = 500

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", name.encode()), *SAFE]
            await send(message)

        try:
            if given is not None and name != given:
                raise ApiError(400, "X-Request-Id: 1 to 64 letters, digits, - and _", "X-Request-Id")
            self._check(scope, headers)
            await self.app(scope, self._limited(headers, receive), answer)
        except ApiError as error:
            await refuse(error, answer)
        finally:
            path = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(path, str(status)).inc()

    def _check(self, scope: Scope, headers: dict[str, str]) -> None:
        host = headers.get("host", "")
        if self.settings.hosts and _named(host) not in self.settings.hosts:
            raise ApiError(403, f"this server is not called {host[:100]!r}: see the option --allow-host")
        origin = headers.get("origin")
        if origin is not None and origin not in self.settings.cors and urlsplit(origin).netloc != host:
            raise ApiError(403, "pages of other origins may not call this server: see the option --cors")
        path = scope["path"]
        key = self.settings.api_key
        if key is None or path in OPEN or path.startswith(RESULTS) or scope["method"] == "OPTIONS":
            return
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(token.strip().encode(), key.encode()):
            raise ApiError(401, "the API key is missing or wrong: send Authorization: Bearer KEY")

    def _limited(self, headers: dict[str, str], receive: Receive) -> Receive:
        most, until = self.settings.body, time.monotonic() + self.settings.read_timeout
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length[:20]) > most:
            raise ApiError(413, f"the body has {length[:20]} bytes, and at most {most} are allowed")
        count, whole = 0, False

        async def limited() -> Message:
            nonlocal count, whole
            if whole:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(until - time.monotonic(), 0.001))
            except asyncio.TimeoutError as error:
                raise ApiError(408, f"the body did not arrive within {self.settings.read_timeout:g} seconds") from error
            count += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if count > most:
                raise ApiError(413, f"the body has more than the {most} bytes allowed")
            return message

        return limited


def _named(host: str) -> str:
    """The host of a Host header, without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


async def refuse(error: ApiError, send: Any) -> None:
    """Answer with an error, if nothing has been answered yet."""
    body = json.dumps(error.body).encode()
    headers: Sequence[tuple[bytes, bytes]] = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *((name.lower().encode(), value.encode()) for name, value in error.headers.items()),
    ]
    await send({"type": "http.response.start", "status": error.status, "headers": list(headers)})
    await send({"type": "http.response.body", "body": body})
