"""Runs a service until a signal stops it, and then until what it has accepted is done."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from flashu.errors import FlashUError
from flashu.server.app import create_app
from flashu.server.service import Service

LINGER = 60
"""Seconds that a client has to read the rest of its answer when the server ends."""


class DrainingServer(uvicorn.Server):
    """On the first SIGTERM or SIGINT: new requests get a 503, accepted ones are finished, then it ends. On the second,
    it ends at once."""

    def __init__(self, config: uvicorn.Config, service: Service, ready: Callable[[int], None]) -> None:
        super().__init__(config)
        self._service, self._ready = service, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._loop = asyncio.get_running_loop()
            self._ready(self.servers[0].sockets[0].getsockname()[1])

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._service.scheduler.draining:
            self.force_exit = sig == signal.SIGINT
            self.should_exit = True
            return
        # Not in the handler itself: it may have interrupted who holds the scheduler's lock.
        self._loop.call_soon_threadsafe(self._service.scheduler.drain, self._drained)

    def _drained(self) -> None:
        """All results are out; uvicorn sends what is left of them before it ends."""
        self.should_exit = True


def serve(service: Service, host: str, port: int, ready: Callable[[int], None], *, log_requests: bool = False) -> None:
    """Serve on an address; port 0 takes a free one. ``ready`` is called with the port once requests are taken."""
    app = create_app(service)
    config = uvicorn.Config(
        app,
        host,
        port,
        log_level="info" if log_requests else "warning",
        access_log=log_requests,
        server_header=False,
        timeout_graceful_shutdown=LINGER,
    )
    server = DrainingServer(config, service, ready)
    try:
        server.run()
    except SystemExit as error:
        raise FlashUError(f"cannot listen on {host}:{port}: is the port in use?") from error
    if not server.started:
        raise FlashUError(f"cannot listen on {host}:{port}: is the port in use?")
