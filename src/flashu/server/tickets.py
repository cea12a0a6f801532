"""A request's side of its job: what the scheduler's thread tells, awaited in the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from starlette.requests import Request

from flashu.server.errors import ApiError
from flashu.server.jobs import Ended, Failed, Job, JobEvent, Started
from flashu.server.scheduler import Scheduler

PING = 15.0
"""Seconds of silence after which a stream shows that it is alive."""


class Gone(Exception):
    """The client has hung up; nobody reads the answer."""


class Ticket:
    """Submits a job and iterates over what becomes of it. Leaving the ``async with`` early cancels the job."""

    def __init__(self, scheduler: Scheduler, job: Job) -> None:
        self.scheduler, self.job = scheduler, job
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[JobEvent] = asyncio.Queue()
        job.tell = self._tell

    def _tell(self, event: JobEvent) -> None:
        with suppress(RuntimeError):  # the loop has closed: the server is gone, and so is whom to tell
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def cancel(self) -> None:
        """End the job for whoever waits for it."""
        self.scheduler.cancel(self.job)
        self._events.put_nowait(Failed(ApiError(499, "the request was cancelled")))

    async def __aenter__(self) -> Ticket:
        self.scheduler.submit(self.job)
        return self

    async def __aexit__(self, *error: Any) -> None:
        if not self.job.over:
            self.scheduler.cancel(self.job)

    async def started(self, request: Request) -> None:
        """Wait until the job is known to be possible; `ApiError` if it is not, `Gone` if the client is."""
        await self._unless_gone(request, self._started())

    async def results(self, request: Request) -> list[Any]:
        """All events, to the end; errors as `started`."""
        return await self._unless_gone(request, self._collected())

    async def events(self) -> AsyncIterator[JobEvent | None]:
        """The next event as it comes; None after a silence. `ApiError` where the job failed."""
        while True:
            try:
                event = await asyncio.wait_for(self._events.get(), PING)
            except asyncio.TimeoutError:
                yield None
                continue
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Ended):
                return
            yield event

    async def _started(self) -> None:
        async for event in self.events():
            if isinstance(event, Started):
                return

    async def _collected(self) -> list[Any]:
        return [event async for event in self.events() if event is not None]

    async def _unless_gone(self, request: Request, work: Any) -> Any:
        watch = asyncio.ensure_future(_hung_up(request))
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait((watch, task), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise Gone
            return task.result()
        finally:
            for one in (watch, task):
                one.cancel()


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
