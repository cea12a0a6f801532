"""What a server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"flashu_{name}", what, labels, registry=registry)

        def gauge(name: str, what: str, *labels: str) -> Gauge:
            return Gauge(f"flashu_{name}", what, labels, registry=registry)

        def histogram(name: str, what: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"flashu_{name}", what, labels, buckets=buckets, registry=registry)

        self.requests = counter("requests", "Requests by path and status", "path", "status")
        self.waiting = gauge("waiting_samples", "Images and answers that wait", "task")
        self.running = gauge("running_samples", "Images and answers under way", "task")
        self.samples = counter("samples", "Images and answers by how they ended", "task", "end")
        self.rows = histogram("forward_rows", "Rows computed together in a forward", ROWS, "kind")
        self.batch = histogram("forward_samples", "Samples in a forward", ROWS, "kind")
        self.steps = counter("drawing_steps", "Forwards of drawings, each sample's counted")
        self.reused = counter("drawing_steps_reused", "Of those, from cached features alone")
        self.skipped = counter("layers_skipped", "Layers left out, each sample's counted")
        self.prompt_tokens = counter("prompt_tokens", "Tokens of questions and messages")
        self.shared = counter("shared_tokens", "Prompt tokens computed once for several rows")
        self.tokens = counter("tokens", "Tokens of answers")
        self.phase = counter("phase_seconds", "The model thread's time by phase", "phase")
        self.seconds = histogram("sample_seconds", "From acceptance to the result", SECONDS, "task")
        self.first = histogram("first_token_seconds", "From acceptance to an answer's first token", SECONDS)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        began = perf_counter()
        try:
            yield
        finally:
            self.phase.labels(phase).inc(perf_counter() - began)

    def page(self) -> bytes:
        return generate_latest(self.registry)
