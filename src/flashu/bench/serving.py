"""Load on a server from outside: requests that arrive at random, at rising rates, under several schedules in turn.

The arrivals of a rate are the same for every schedule, and open-loop: they do not wait for answers. Requests are
streamed, so that the first token and the first preview are timed as a user sees them.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from flashu.errors import FlashUError
from flashu.scenes import benchmark
from flashu.scenes.captions import CATEGORIES
from flashu.scenes.world import render

Kind = Literal["draw", "ask", "edit"]
KINDS: tuple[Kind, ...] = ("draw", "ask", "edit")
MIX: Mapping[Kind, float] = {"draw": 0.4, "ask": 0.5, "edit": 0.1}
"""Of requests; drawing takes over the edits of a model that cannot edit."""
SCHEDULES = ("none", "request", "step")
CHANGE = "make the circle blue"


@dataclass(frozen=True)
class Request:
    """What to send, and when, in seconds from the start."""

    at: float
    kind: Kind
    body: Mapping[str, Any]
    image: bytes | None = None


@dataclass
class Timed:
    """What became of a request: seconds from its arrival to the first token or preview, and to its end."""

    kind: Kind
    arrived: float
    first: float | None = None
    done: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class Load:
    """One schedule under one rate of arrivals (requests a second)."""

    schedule: str
    rate: float
    offered: int
    done: int
    errors: int
    throughput: float
    latency: Mapping[str, Mapping[str, float]]
    first: Mapping[str, Mapping[str, float]]

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass
class ServingReport:
    model: str
    preset: str
    steps: int | None
    seconds: float
    seed: int
    loads: list[Load] = field(default_factory=list)
    conditions: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""

    def of(self, schedule: str) -> list[Load]:
        return [load for load in self.loads if load.schedule == schedule]

    def saturated(self, schedule: str) -> float:
        """Most requests that a schedule finished in a second."""
        return max(load.throughput for load in self.of(schedule))

    @property
    def gain(self) -> float:
        """Throughput at saturation of step batching over one request at a time."""
        return self.saturated("step") / self.saturated("none")

    @property
    def first_tokens(self) -> list[tuple[float, float]]:
        """(rate, p95 of the first token under step batching over that of one at a time)."""
        pairs = zip(self.of("step"), self.of("none"), strict=True)
        return [(a.rate, a.first["ask"]["p95"] / b.first["ask"]["p95"]) for a, b in pairs if "ask" in a.first]

    def to_dict(self) -> dict[str, Any]:
        own = {name: value for name, value in vars(self).items() if name != "loads"}
        gains = {"gain": self.gain, "first_tokens": self.first_tokens}
        return {**own, **gains, "loads": [load.to_dict() for load in self.loads]}


# -- servers -----------------------------------------------------------------------------------------------------
@contextmanager
def serving(schedule: str, model: str, preset: str, threads: int | None, options: Sequence[str] = ()) -> Iterator[str]:
    """`flashu serve` in a process of its own, by its address."""
    command = [sys.executable, "-m", "flashu", "serve", "--port", "0", "--batching", schedule, "--model", model]
    command += ["--preset", preset, "--queue", "100000", "--timeout", "86400", *options]
    command += [] if threads is None else ["--threads", str(threads)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("serving "):
            raise FlashUError("the server to measure did not start: see its message above")
        yield line.split()[-1]
    finally:
        process.terminate()
        process.wait()


def connection(url: str) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=86400)


def capabilities(url: str) -> dict[str, Any]:
    """What the server's model says of itself."""
    with connection_closed(url) as made:
        made.request("GET", "/v1/models")
        return json.loads(made.getresponse().read())["data"][0]["flashu"]


@contextmanager
def connection_closed(url: str) -> Iterator[http.client.HTTPConnection]:
    made = connection(url)
    try:
        yield made
    finally:
        made.close()


# -- requests ----------------------------------------------------------------------------------------------------
def arrivals(rate: float, seconds: float, seed: int, edits: bool, steps: int | None) -> list[Request]:
    """Requests that arrive as a Poisson process of ``rate``; of one seed always the same."""
    chance = random.Random(seed)
    prompts = [p.text for category in CATEGORIES for p in benchmark.prompts(category, 4, seed=seed)]
    questions = [q for kind in benchmark.QUESTION_KINDS for q in benchmark.questions(kind, 4, seed=seed)]
    shown = [_png(pixels) for pixels in render([q.scene for q in questions])]
    drawing = {} if steps is None else {"num_inference_steps": steps}
    made: list[Request] = []
    at = chance.expovariate(rate)
    while at < seconds:
        (kind,) = chance.choices(KINDS, [MIX[kind] for kind in KINDS])
        kind = "draw" if kind == "edit" and not edits else kind
        n = chance.randrange(len(questions))
        number = chance.randrange(2**31)
        if kind == "ask":
            url = f"data:image/png;base64,{base64.b64encode(shown[n]).decode()}"
            parts = [{"type": "text", "text": questions[n].text}, {"type": "image_url", "image_url": {"url": url}}]
            made.append(Request(at, kind, {"messages": [{"role": "user", "content": parts}], "stream": True}))
        else:
            prompt = CHANGE if kind == "edit" else prompts[n % len(prompts)]
            body = {"prompt": prompt, "seed": number, "stream": True, "partial_images": 2, **drawing}
            made.append(Request(at, kind, body, shown[n] if kind == "edit" else None))
        at += chance.expovariate(rate)
    return made


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def sent(url: str, request: Request, arrived: float) -> Timed:
    """Carry out one request."""
    timed = Timed(request.kind, arrived)
    path = {"draw": "/v1/images/generations", "edit": "/v1/images/edits", "ask": "/v1/chat/completions"}[request.kind]
    try:
        with connection_closed(url) as made:
            data, kind = _encoded(request)
            made.request("POST", path, data, {"Content-Type": kind})
            answer = made.getresponse()
            if answer.status != 200:
                timed.error = f"{answer.status} {answer.read()[:200].decode(errors='replace')}"
                return timed
            for line in answer:
                if timed.first is None and _is_first(request.kind, line):
                    timed.first = time.perf_counter() - arrived
                if line.startswith(b"event: error"):
                    timed.error = "failed while streaming"
        timed.done = time.perf_counter() - arrived
    except OSError as error:
        timed.error = repr(error)
    return timed


def _is_first(kind: Kind, line: bytes) -> bool:
    """Whether a line of a stream brings the first token of text, or the first preview."""
    if not line.startswith(b"data: {"):
        return False
    event = json.loads(line[6:])
    if kind == "ask":
        return any(choice["delta"].get("content") for choice in event["choices"])
    return str(event["type"]).endswith("partial_image")


def _encoded(request: Request) -> tuple[bytes, str]:
    if request.image is None:
        return json.dumps(request.body).encode(), "application/json"
    edge, parts = "flashu-bench", []
    for name, value in request.body.items():
        text = json.dumps(value) if value is True else value
        parts.append(f'--{edge}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{text}\r\n')
    head = f'--{edge}\r\nContent-Disposition: form-data; name="image"; filename="image.png"\r\n\r\n'
    data = "".join(parts).encode() + head.encode() + request.image + f"\r\n--{edge}--\r\n".encode()
    return data, f"multipart/form-data; boundary={edge}"


# -- measuring ---------------------------------------------------------------------------------------------------
def loaded(url: str, schedule: str, rate: float, requests: Sequence[Request]) -> Load:
    """Send requests when they are due, whatever has been answered; wait for all."""
    results: list[Timed] = []
    lock = threading.Lock()
    began = time.perf_counter()

    def one(request: Request, arrived: float) -> None:
        timed = sent(url, request, arrived)
        with lock:
            results.append(timed)

    threads = []
    for request in requests:
        due = began + request.at
        time.sleep(max(0.0, due - time.perf_counter()))
        thread = threading.Thread(target=one, args=(request, due))
        thread.start()
        threads.append(thread)
    for thread in threads:
        thread.join()
    return summed(schedule, rate, results, began)


def summed(schedule: str, rate: float, results: Sequence[Timed], began: float) -> Load:
    done = [timed for timed in results if timed.done is not None and timed.error is None]
    if not done:
        raise FlashUError(f"the server answered nothing at {rate:g} requests a second: {results[0].error}")
    seconds = max(timed.arrived + (timed.done or 0) for timed in done) - began
    latency: dict[str, dict[str, float]] = {}
    first: dict[str, dict[str, float]] = {}
    for kind in KINDS:
        own = [timed for timed in done if timed.kind == kind]
        if own:
            latency[kind] = quantiles([timed.done or 0.0 for timed in own])
        if begun := [timed.first for timed in own if timed.first is not None]:
            first[kind] = quantiles(begun)
    return Load(schedule, rate, len(results), len(done), len(results) - len(done), len(done) / seconds, latency, first)


def quantiles(values: Sequence[float]) -> dict[str, float]:
    p50, p95, p99 = np.percentile(values, (50, 95, 99)).tolist()
    return {"p50": p50, "p95": p95, "p99": p99}


def bench_serving(
    model: str,
    preset: str,
    *,
    seconds: float = 20.0,
    rates: Sequence[float] | None = None,
    steps: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    options: Sequence[str] = (),
    schedules: Sequence[str] = SCHEDULES,
    say: Callable[[str], None] = lambda text: None,
) -> ServingReport:
    """Every schedule under every rate, in turns. ``rates`` None: half, one, two and four times what one request at a
    time gets through, which is measured first. ``options``: further ones of `flashu serve`."""
    report = ServingReport(model, preset, steps, seconds, seed)
    with ExitStack() as stack:
        urls: dict[str, str] = {}
        for schedule in schedules:
            say(f"starting a server, batching {schedule}")
            urls[schedule] = stack.enter_context(serving(schedule, model, preset, threads, options))
        edits = capabilities(next(iter(urls.values())))["edits"]
        for schedule, url in urls.items():
            say(f"warming up, batching {schedule}")
            loaded(url, schedule, 10.0, arrivals(10.0, 1.0, seed + 1, edits, steps))
        if rates is None:
            say("measuring one request at a time")
            burst = [Request(0.0, r.kind, r.body, r.image) for r in arrivals(12.0, 1.0, seed + 2, edits, steps)]
            alone = loaded(urls["none"], "none", 0.0, burst).throughput
            rates = [round(alone * factor, 3) for factor in (0.5, 1, 2, 4)]
        for rate in rates:
            requests = arrivals(rate, seconds, seed, edits, steps)
            for schedule, url in urls.items():
                say(f"{rate:g} requests a second, batching {schedule}")
                report.loads.append(loaded(url, schedule, rate, requests))
    return report
