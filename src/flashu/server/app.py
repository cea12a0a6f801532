"""The FastAPI application of a service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from flashu.evaluation.machine import installed
from flashu.server import chat, images
from flashu.server.errors import ApiError
from flashu.server.guard import Guard
from flashu.server.schemas import Chat, Generate
from flashu.server.service import Service
from flashu.server.streams import components
from flashu.server.tickets import Gone

PAGES = {
    "/": ("index.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
    "/docs": ("docs.html", "text/html"),
    "/docs.js": ("docs.js", "text/javascript"),
}


def create_app(service: Service) -> FastAPI:
    """The application; its lifespan starts and stops the scheduler."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.scheduler.start()
        yield
        service.scheduler.stop()

    app = FastAPI(
        title="flashu",
        version=installed("flashu") or "unknown",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    app.state.service = service
    app.add_middleware(Guard, settings=service.settings, metrics=service.metrics)
    if service.settings.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(service.settings.cors),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "X-Request-Id"],
            expose_headers=["X-Request-Id", "Retry-After"],
        )
    app.include_router(images.router(service))
    app.include_router(chat.router(service))
    _service_routes(app, service)
    _pages(app)

    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> Response:
        return JSONResponse(error.body, error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        return await refused(
            request, ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}")
        )

    @app.exception_handler(Gone)
    async def gone(request: Request, error: Gone) -> Response:
        return Response(status_code=499)

    return app


def _service_routes(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models", tags=["service"], summary="The model, its presets and what it can do")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(service)]}

    @app.get("/v1/models/{name:path}", tags=["service"], summary="One model")
    async def model(name: str) -> dict[str, Any]:
        service.preset(name, None)
        return _model(service)

    @app.delete("/v1/requests/{name}", tags=["service"], summary="Cancel a request by its X-Request-Id")
    async def cancel(name: str) -> dict[str, Any]:
        ticket = service.tickets.get(name)
        if ticket is None:
            raise ApiError(404, "no request of this id is under way")
        ticket.cancel()
        return {"id": name, "object": "request", "cancelled": True}

    @app.get("/health", tags=["service"], summary="200 while the process works")
    async def health() -> dict[str, str]:
        if not service.scheduler.alive:
            raise ApiError(503, "the model's thread has ended")
        return {"status": "ok"}

    @app.get("/ready", tags=["service"], summary="200 while requests are taken")
    async def ready() -> dict[str, str]:
        if service.scheduler.draining or not service.scheduler.alive:
            raise ApiError(503, "the server is stopping", retry_after=5)
        return {"status": "ready"}

    @app.get("/metrics", tags=["service"], summary="Counters, for Prometheus")
    async def metrics() -> Response:
        return Response(service.metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> dict[str, Any]:
        schema = app.openapi()
        known = schema.setdefault("components", {}).setdefault("schemas", {})
        known |= components(Generate, Chat)
        return schema


def _model(service: Service) -> dict[str, Any]:
    layout, defaults = service.layout, service.defaults
    return {
        "id": service.name,
        "object": "model",
        "created": 0,
        "owned_by": "flashu",
        "flashu": {
            "model_hash": service.hash,
            "presets": list(service.engines),
            "draws": layout.draws,
            "sees": layout.sees,
            "edits": layout.draws and layout.edits,
            "thinks": layout.thinks,
            "settings": sorted(layout.settings),
            "defaults": {
                "num_inference_steps": defaults.steps,
                "guidance_scale": defaults.guidance,
                "size": f"{defaults.width}x{defaults.height}",
                "max_tokens": min(defaults.max_new_tokens, service.settings.max_tokens),
            },
            "limits": {"n": service.settings.n, "num_inference_steps": service.settings.steps},
        },
    }


def _pages(app: FastAPI) -> None:
    """The page's files, read once: no path of a request is ever opened."""
    for path, (name, kind) in PAGES.items():
        data = (files("flashu.server") / "page" / name).read_bytes()

        def page(data: bytes = data, kind: str = kind) -> Response:
            return Response(data, media_type=f"{kind}; charset=utf-8", headers={"Cache-Control": "no-cache"})

        app.add_api_route(path, page, include_in_schema=False, response_model=None)
