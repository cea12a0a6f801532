"""`flashu serve`: a server of one model, and a page to draw on."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Annotated

import typer

from flashu.cli import options as opt
from flashu.cli.opened import open_engine
from flashu.errors import FlashUError
from flashu.plan.files import given_text

KEY = "FLASHU_API_KEY"


@opt.offers(opt.EngineOptions)
def serve(
    options: opt.EngineOptions,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    presets: Annotated[
        str, typer.Option(help="Further presets that requests may ask for, separated by commas.")
    ] = "exact",
    batching: Annotated[
        str, typer.Option(help="step; as baselines: request (whole requests together) or none (one at a time).")
    ] = "step",
    drawing: Annotated[int, typer.Option(min=1, max=1024, help="Images under way at once.")] = 16,
    answering: Annotated[int, typer.Option(min=1, max=1024, help="Answers under way at once.")] = 16,
    answer_share: Annotated[
        float, typer.Option(min=0.01, max=0.99, help="Answers' part of the time while drawings wait, too.")
    ] = 0.5,
    queue: Annotated[int, typer.Option(min=0, max=100_000, help="Images and answers that may wait.")] = 256,
    timeout: Annotated[float, typer.Option(min=1, max=86_400, help="Seconds from acceptance to the result.")] = 600,
    max_steps: Annotated[int, typer.Option(min=1, max=10_000, help="Most steps of a request.")] = 200,
    max_n: Annotated[int, typer.Option(min=1, max=10, help="Most results of a request.")] = 10,
    max_work: Annotated[int, typer.Option(min=1, max=10**15, help="Most n x steps x pixels of a request.")] = 2 * 10**9,
    max_tokens: Annotated[int, typer.Option(min=1, max=32_768, help="Most tokens of an answer.")] = 4096,
    max_body: Annotated[int, typer.Option(min=1, max=2**32, help="Most bytes of a request.")] = 32 * 2**20,
    max_pixels: Annotated[int, typer.Option(min=1, max=2**28, help="Most pixels of an image, drawn or sent.")] = 2**24,
    api_key_file: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help=f"Holds the key that callers need; or set {KEY}.")
    ] = None,
    cors: Annotated[str, typer.Option(help="Origins whose pages may call, separated by commas.")] = "",
    allow_host: Annotated[
        str, typer.Option(help="Further names that the server may be called by, separated by commas; * for any.")
    ] = "",
    fetch_from: Annotated[
        str, typer.Option(help="Hosts from which images may be fetched, separated by commas; none if not given.")
    ] = "",
    threads: Annotated[int | None, opt.number("threads", "CPU threads; torch's own choice if not given.")] = None,
    log_requests: Annotated[bool, typer.Option("--log-requests", help="One line on stderr for each request.")] = False,
    ray: Annotated[bool, typer.Option("--ray", help="Replicas on a Ray cluster (RAY_ADDRESS), or on this machine.")] = (
        False
    ),
    replicas: Annotated[int, typer.Option(min=1, max=10_000, help="With --ray: how many.")] = 1,
    gpus_per_replica: Annotated[float, typer.Option(min=0, max=64, help="With --ray: GPUs of each.")] = 0,
    autoscale: Annotated[str | None, typer.Option(help="With --ray: MIN:MAX replicas, as the load asks.")] = None,
) -> None:
    """Serve a model: the OpenAI API for images, edits and chat under /v1, a page at /, counters at /metrics.

    Ctrl-C or SIGTERM finishes what has been accepted, then stops.
    """
    try:
        from flashu.server.serve import serve as run
        from flashu.server.service import Service
    except ModuleNotFoundError as error:
        raise FlashUError(f'serving needs {error.name}: pip install ".[serve]" in a clone of flashu') from error
    from flashu.server.settings import ServeSettings

    key = given_text(api_key_file).strip() if api_key_file is not None else os.environ.get(KEY)
    settings = ServeSettings(
        batching=batching,  # type: ignore[arg-type]
        drawing=drawing,
        answering=answering,
        answer_share=answer_share,
        queue=queue,
        timeout=timeout,
        n=max_n,
        steps=max_steps,
        work=max_work,
        max_tokens=max_tokens,
        body=max_body,
        pixels=max_pixels,
        api_key=key,
        cors=_listed(cors),
        hosts=names_of(host, _listed(allow_host)),
        fetch_hosts=_listed(fetch_from),
    )

    def made() -> Service:
        if threads is not None:
            import torch

            torch.set_num_threads(threads)
        first = open_engine(options)
        engines = {options.preset: first} | {
            name: first.with_recipe(name) for name in _listed(presets) if name != options.preset
        }
        return Service(engines, settings, options.model)

    def ready(port: int) -> None:
        shown = f"[{host}]" if ":" in host else host
        print(f"serving {options.model} on http://{shown}:{port}", flush=True)

    if ray:
        from flashu.server.replicas import Replicas
        from flashu.server.replicas import run as run_replicas

        scale = None if autoscale is None else Replicas.range_of(autoscale)
        if port == 0:
            raise FlashUError("--ray needs a port: give one with --port")
        run_replicas(made, Replicas(replicas, gpus_per_replica, 1, scale), host, port, ready)
        return
    if replicas != 1 or gpus_per_replica or autoscale is not None:
        raise FlashUError("replicas are Ray's: give --ray, too")
    run(made(), host, port, ready, log_requests=log_requests)


def names_of(host: str, more: list[str]) -> list[str]:
    """By which names a server on an address may be called; [] = any. On the loopback, other names are a page's that
    has its own name point here (DNS rebinding)."""
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if "*" in more or (not loopback and not more):
        return []
    return [*dict.fromkeys(("127.0.0.1", "localhost", "::1", host, *more))]


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
