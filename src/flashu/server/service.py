"""What the routes share: the model, its presets, and how a request becomes a job."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from PIL import Image
from starlette.requests import Request

from flashu.errors import FlashUError, ImageError, PromptError
from flashu.inference.actions import AnswerRequest, DrawRequest
from flashu.inference.engine import Engine
from flashu.models.weights import checkpoint_hash
from flashu.plan.limits import check_number
from flashu.server.errors import ApiError
from flashu.server.jobs import Job, Work
from flashu.server.metrics import Metrics
from flashu.server.outcome import Kept
from flashu.server.scheduler import Scheduler
from flashu.server.schemas import Chat, Drawing, size_of
from flashu.server.settings import ServeSettings
from flashu.server.tickets import Ticket


class Service:
    """One model behind HTTP. ``engines``: by preset, the first the default; they share the model. Makes every preset
    ready, so it takes a while."""

    def __init__(self, engines: Mapping[str, Engine], settings: ServeSettings | None = None, name: str = "") -> None:
        self.settings = settings or ServeSettings()
        self.engines = dict(engines)
        self.default, engine = next(iter(self.engines.items()))
        self.engine, self.layout, self.defaults = engine, engine.layout, engine.layout.defaults
        self.name = name or engine.model.name or "flashu"
        self.hash = checkpoint_hash(engine.model)
        for one in self.engines.values():
            if self.layout.draws:
                one.prepare("generation")
            if self.layout.sees:
                one.prepare("understanding")
        self.metrics = Metrics()
        self.scheduler = Scheduler(self.engines, self.settings, self.metrics)
        self.kept = Kept(self.settings)
        self.tickets: dict[str, Ticket] = {}

    # -- what requests name --------------------------------------------------------------------------------------
    def preset(self, model: str | None, preset: str | None) -> str:
        """The preset of a request, whose model must be this one."""
        if model is not None and model != self.name:
            raise ApiError(404, f"model: {model!r} is not here, {self.name!r} is", "model")
        if preset is not None and preset not in self.engines:
            known = ", ".join(self.engines)
            raise ApiError(400, f"preset: {preset!r} is not served, but {known} are", "preset")
        return preset or self.default

    def about(self, preset: str) -> dict[str, Any]:
        return {"model": self.name, "model_hash": self.hash, "preset": preset}

    @asynccontextmanager
    async def listed(self, request: Request, ticket: Ticket) -> AsyncIterator[None]:
        """While a request is under way, it can be cancelled by its id."""
        name = request.state.id
        if name in self.tickets:
            raise ApiError(409, "X-Request-Id: a request of this id is under way", "X-Request-Id")
        self.tickets[name] = ticket
        try:
            async with ticket:
                yield
        finally:
            del self.tickets[name]

    # -- drawing -------------------------------------------------------------------------------------------------
    def drawing(
        self,
        body: Drawing | Chat,
        prompt: str,
        images: Sequence[Image.Image],
        own: Mapping[str, Any],
        text: str,
        picture: str,
    ) -> tuple[Job, dict[str, Any]]:
        """The job of a request to draw, and its effective settings. ``own``: settings that only this model has.
        ``text``, ``picture``: the fields that hold the prompt and the images."""
        preset = self.preset(body.model, body.preset)
        if not self.layout.draws:
            raise ApiError(400, f"{self.name} cannot draw here: it was loaded without an autoencoder")
        if body.negative_prompt is not None:
            raise ApiError(400, f"negative_prompt: {self.name} draws without one", "negative_prompt")
        if images and not self.layout.edits:
            raise ApiError(400, f"{picture}: {self.name} draws and sees, but does not edit images", picture)
        self._thinks(body)
        width, height = size_of(body.size)
        field = "size"
        if isinstance(body, Chat) and body.size is None:
            width, height = body.width, body.height
            field = "height" if width is None else "width"
        defaults = self.defaults
        steps = defaults.steps if body.num_inference_steps is None else body.num_inference_steps
        guidance = defaults.guidance if body.guidance_scale is None else body.guidance_scale
        size = (width or defaults.width, height or defaults.height)
        # The usual size of an edit is that of its image, and every model has its own way of fitting it.
        self._allowed(body.n, steps, size, field, check=not images or body.size is not None)
        requests = [
            DrawRequest(
                prompt,
                body.seed + n,
                body.num_inference_steps,
                body.guidance_scale,
                None,
                height,
                width,
                images=tuple(images),
                think=body.think,
                own=own,
            )
            for n in range(body.n)
        ]
        about = self.about(preset) | {
            "num_inference_steps": steps,
            "size": f"{size[0]}x{size[1]}",
            "seed": body.seed,
            "think": body.think,
            **({} if images and body.guidance_scale is None else {"guidance_scale": float(guidance)}),
            **own,
        }
        previews = body.partial_images if isinstance(body, Drawing) else 0
        return Job(_id(), preset, requests, _nobody, previews=previews, fields=_fields(text, picture)), about

    def _thinks(self, body: Drawing | Chat) -> None:
        if body.think and not self.layout.thinks:
            raise ApiError(400, f"think: {self.name} was not trained to", "think")

    def _allowed(self, n: int, steps: int, size: tuple[int, int], field: str, check: bool) -> None:
        settings, pixels = self.settings, size[0] * size[1]
        shown = f"{size[0]}x{size[1]}"
        if n > settings.n:
            raise ApiError(400, f"n: at most {settings.n} images a request", "n")
        if steps > settings.steps:
            raise ApiError(400, f"num_inference_steps: at most {settings.steps}", "num_inference_steps")
        if pixels > settings.pixels:
            raise ApiError(400, f"{field}: {shown} is more than {settings.pixels} pixels", field)
        if n * steps * pixels > settings.work:
            most = f"more work than one request may ask for ({n} images x {steps} steps x {shown})"
            raise ApiError(400, f"n: {most}", "n")
        try:
            for name, side in zip(("width", "height"), size, strict=True):
                check_number(name, side)
            if check:
                self.engine.sizes.image_tokens(size[1], size[0])
        except FlashUError as error:
            raise ApiError(400, f"{field}: {error}", field) from error

    # -- answering -----------------------------------------------------------------------------------------------
    def answering(self, body: Chat, text: str, images: Sequence[Image.Image]) -> tuple[Job, dict[str, Any]]:
        preset = self.preset(body.model, body.preset)
        if images and not self.layout.sees:
            raise ApiError(400, f"messages: {self.name} cannot see images here", "messages")
        most = self.engine.model.spec.pictures
        if most is not None and len(images) > most:
            raise ApiError(400, f"messages: {self.name} takes at most {most} images in a question", "messages")
        self._thinks(body)
        if body.n > self.settings.n:
            raise ApiError(400, f"n: at most {self.settings.n} answers a request", "n")
        field = "max_completion_tokens" if body.max_tokens is None else "max_tokens"
        given = body.max_completion_tokens if body.max_tokens is None else body.max_tokens
        if given is not None and given > self.settings.max_tokens:
            raise ApiError(400, f"{field}: at most {self.settings.max_tokens}", field)
        limit = given or min(self.defaults.max_new_tokens, self.settings.max_tokens)
        stop = [body.stop] if isinstance(body.stop, str) else list(body.stop or ())
        about = self.about(preset) | {
            "max_tokens": limit,
            "temperature": float(body.temperature),
            "top_p": 1.0 if body.top_p is None else float(body.top_p),
            "seed": body.seed,
            "think": body.think,
        }
        job = Job(
            _id(),
            preset,
            [AnswerRequest(text, tuple(images), limit, think=body.think) for _ in range(body.n)],
            _nobody,
            "understanding",
            {"temperature": float(body.temperature), "top_p": body.top_p},
            [body.seed + n for n in range(body.n)],
            stop,
            fields=_fields("messages", "messages"),
        )
        return job, about


def measured(work: Work) -> dict[str, Any]:
    """What a result says of the work it took."""
    found: dict[str, Any] = {
        "forwards": work.forwards,
        "decoder_forwards": work.decoder,
        "seconds": round(work.seconds, 4),
        "waited_seconds": round(work.waited, 4),
    }
    if work.scales:
        found["scales"] = dict(work.scales)
    return found if work.first is None else found | {"first_token_seconds": round(work.first, 4)}


def _id() -> str:
    return secrets.token_hex(12)


def _nobody(event: Any) -> None:
    """Until a ticket listens."""


def _fields(text: str, picture: str) -> dict[type[Exception], str]:
    return {PromptError: text, ImageError: picture}
