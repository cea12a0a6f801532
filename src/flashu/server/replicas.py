"""Replicas of a service on a Ray cluster: Ray Serve starts them, watches them and shares the requests among them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI

from flashu.errors import FlashUError
from flashu.server.app import create_app
from flashu.server.service import Service


@dataclass(frozen=True)
class Replicas:
    """``count`` replicas, or as many of ``autoscale`` (least, most) as the load asks for; each takes ``gpus`` GPUs and
    ``cpus`` CPUs, and at most ``ongoing`` requests at once."""

    count: int = 1
    gpus: float = 0
    cpus: float = 1
    autoscale: tuple[int, int] | None = None
    ongoing: int = 64

    @staticmethod
    def range_of(text: str) -> tuple[int, int]:
        """Of "MIN:MAX"."""
        least, _, most = text.partition(":")
        if not (least.isdigit() and most.isdigit() and 1 <= int(least) <= int(most)):
            raise FlashUError(f"autoscale is written MIN:MAX, for instance 1:8, not {text!r}")
        return int(least), int(most)


def deployment(make: Callable[[], Service], replicas: Replicas) -> Any:
    """The Ray Serve application of a service, which every replica makes for itself. Ray must be installed."""
    from ray import serve

    held: list[Service] = []

    def app() -> FastAPI:
        held.append(make())
        return create_app(held[0])

    @serve.ingress(app)
    class Replica:
        def check_health(self) -> None:
            """Ray replaces a replica whose model's thread has ended."""
            if held and not held[0].scheduler.alive:
                raise RuntimeError("the model's thread has ended")

    scale: dict[str, Any] = {"num_replicas": replicas.count}
    if replicas.autoscale is not None:
        least, most = replicas.autoscale
        # New replicas are wanted well before the present ones refuse.
        wanted = max(1, replicas.ongoing // 4)
        scale = {"autoscaling_config": {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": wanted}}
    made = serve.deployment(
        name="flashu",
        ray_actor_options={"num_gpus": replicas.gpus, "num_cpus": replicas.cpus},
        max_ongoing_requests=replicas.ongoing,
        health_check_period_s=5,
        graceful_shutdown_timeout_s=60,
        **scale,
    )(Replica)
    return made.bind()


def start(make: Callable[[], Service], replicas: Replicas, host: str, port: int) -> None:
    """Start the replicas, on the cluster that RAY_ADDRESS names or on this machine; returns when they take requests."""
    try:
        import ray
        from ray import serve
    except ModuleNotFoundError as error:
        raise FlashUError('--ray needs Ray: pip install ".[ray]" in a clone of flashu') from error
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": host, "port": port})
    serve.run(deployment(make, replicas), name="flashu")


def run(make: Callable[[], Service], replicas: Replicas, host: str, port: int, ready: Callable[[int], None]) -> None:
    """`start`, and stop at SIGTERM or SIGINT when accepted requests are done."""
    start(make, replicas, host, port)
    from ray import serve

    stop = threading.Event()
    for sig in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sig, lambda *_: stop.set())
    ready(port)
    stop.wait()
    serve.shutdown()
