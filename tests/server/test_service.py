"""Who may call, what is given back when a client leaves, and the end of a server."""

from __future__ import annotations

import http.server
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import flashu
from flashu import FlashUError
from flashu.cli.serve import names_of
from flashu.server.service import Service
from flashu.server.settings import ServeSettings
from tests.fakes.masked import seeded
from tests.fakes.tokens import TokenModel
from tests.server.served import Served, data_url, in_process, in_thread, png

DRAW, CHAT = "/v1/images/generations", "/v1/chat/completions"
SAYS = [{"role": "user", "content": "w1 w2"}]


def fake(**options: Any) -> Service:
    model = seeded(TokenModel)
    return Service({"exact": flashu.Engine(model, model.processor)}, ServeSettings(**options), "fake")  # type: ignore[arg-type]


@pytest.fixture
def slow(tiny_engine: flashu.Engine) -> Iterator[Served]:
    """Drawings of which each takes as long as it is told to."""
    with in_thread(Service({"exact": tiny_engine}, ServeSettings(steps=10_000, queue=1, drawing=1), "tiny")) as served:
        yield served


def wait_for(condition: Any, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


# -- who may call ------------------------------------------------------------------------------------------------
def test_a_key() -> None:
    with in_thread(fake(api_key="secret")) as served:
        body = {"messages": SAYS}
        for wrong in (
            {},
            {"Authorization": "Bearer other"},
            {"Authorization": "Basic secret"},
            {"Authorization": "secret"},
        ):
            answer = served.call("POST", CHAT, body, wrong)
            assert answer.status == 401
            assert answer.headers["www-authenticate"] == "Bearer"
        assert served.call("POST", CHAT, body, {"Authorization": "Bearer secret"}).status == 200
        assert served.call("GET", "/metrics").status == 401
        assert served.call("GET", "/v1/models").status == 401
        for path in ("/", "/page.js", "/page.css", "/docs", "/openapi.json", "/health", "/ready"):
            assert served.call("GET", path).status == 200
        made = served.call(
            "POST", DRAW, {"prompt": "w1", "response_format": "url"}, {"Authorization": "Bearer secret"}
        ).json
        assert served.call("GET", made["data"][0]["url"].removeprefix(served.url)).status == 200


def test_pages_of_other_origins() -> None:
    with in_thread(fake(cors=["https://friend.example"])) as served:
        body = {"messages": SAYS}
        assert served.call("POST", CHAT, body, {"Origin": "https://evil.example"}).status == 403
        assert served.call("POST", CHAT, body, {"Origin": "null"}).status == 403
        assert served.call("POST", CHAT, body, {"Origin": served.url}).status == 200
        friend = served.call("POST", CHAT, body, {"Origin": "https://friend.example"})
        assert friend.status == 200
        assert friend.headers["access-control-allow-origin"] == "https://friend.example"
        asked = {"Origin": "https://friend.example", "Access-Control-Request-Method": "POST"}
        assert served.call("OPTIONS", CHAT, None, asked).status == 200


def test_names_of_the_server() -> None:
    with in_thread(fake(hosts=names_of("127.0.0.1", []))) as served:
        assert served.call("GET", "/health", None, {"Host": "rebound.example"}).status == 403
        assert served.call("GET", "/health", None, {"Host": "localhost:1234"}).status == 200
        assert served.call("GET", "/health", None, {"Host": "[::1]"}).status == 200
    assert names_of("0.0.0.0", []) == []
    assert names_of("127.0.0.1", ["*"]) == []
    assert "a.example" in names_of("0.0.0.0", ["a.example"])


def test_headers_of_every_answer(editing: Served) -> None:
    for path in ("/", "/v1/models", "/none"):
        headers = editing.call("GET", path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'self'" in headers["content-security-policy"]
        assert headers["x-request-id"]
        assert "server" not in headers
    assert editing.call("GET", "/health", None, {"X-Request-Id": "mine-1"}).headers["x-request-id"] == "mine-1"
    assert editing.call("GET", "/health", None, {"X-Request-Id": "not mine!"}).status == 400


# -- images from elsewhere ---------------------------------------------------------------------------------------
class _Files(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/elsewhere":
            self.send_response(302)
            self.send_header("Location", "/image")
            self.end_headers()
            return
        data = png(size=(4, 4)) if self.path == "/image" else b"x" * 300_000
        self.send_response(200)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None: ...


def test_images_are_fetched_from_allowed_hosts_only() -> None:
    files = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Files)
    threading.Thread(target=files.serve_forever, daemon=True).start()
    at = f"127.0.0.1:{files.server_port}"

    def asked(url: str) -> dict[str, Any]:
        parts = [{"type": "text", "text": "w1"}, {"type": "image_url", "image_url": {"url": url}}]
        return {"messages": [{"role": "user", "content": parts}]}

    try:
        with in_thread(fake(fetch_hosts=[at], body=200_000)) as served:
            fetched = served.post(CHAT, asked(f"http://{at}/image"))
            assert fetched.status == 200
            sent = served.post(CHAT, asked(data_url(png(size=(4, 4)))))
            assert fetched.json["choices"][0]["message"] == sent.json["choices"][0]["message"]
            for path in ("elsewhere", "large"):
                assert served.post(CHAT, asked(f"http://{at}/{path}")).status == 400
            assert served.post(CHAT, asked(f"http://localhost:{files.server_port}/image")).status == 400
    finally:
        files.shutdown()
        files.server_close()


# -- clients that leave ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_frees_its_row(stream: bool, slow: Served) -> None:
    connection = slow.connection()
    body = json.dumps({"prompt": "w1", "num_inference_steps": 10_000, "stream": stream})
    connection.request("POST", DRAW, body, {"Content-Type": "application/json"})
    assert slow.service is not None
    scheduler = slow.service.scheduler
    wait_for(lambda: len(scheduler._running) == 1 and scheduler._forwards > 3)
    assert connection.sock is not None
    connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()
    wait_for(lambda: not scheduler._running)
    assert slow.post(DRAW, {"prompt": "w1", "num_inference_steps": 2}).status == 200
    assert not slow.service.tickets


def test_a_request_is_cancelled_by_its_id(slow: Served) -> None:
    body = {"prompt": "w1", "num_inference_steps": 10_000}
    with ThreadPoolExecutor(2) as pool:
        asked = pool.submit(slow.call, "POST", DRAW, body, {"X-Request-Id": "one"})
        assert slow.service is not None
        wait_for(lambda: "one" in slow.service.tickets)  # type: ignore[union-attr]
        assert slow.call("POST", DRAW, body, {"X-Request-Id": "one"}).status == 409
        assert slow.call("DELETE", "/v1/requests/one").json["cancelled"]
        assert asked.result(30).status == 499
    wait_for(lambda: not slow.service.scheduler._running)  # type: ignore[union-attr]
    assert slow.call("DELETE", "/v1/requests/one").status == 404


def test_a_full_queue_says_when_to_come_again(slow: Served) -> None:
    with ThreadPoolExecutor(2) as pool:
        held = [
            pool.submit(slow.call, "POST", DRAW, {"prompt": "w1", "num_inference_steps": 10_000}, {"X-Request-Id": n})
            for n in ("a", "b")
        ]
        assert slow.service is not None
        wait_for(lambda: len(slow.service.tickets) == 2)  # type: ignore[union-attr]
        answer = slow.post(DRAW, {"prompt": "w1"})
        assert answer.status == 429
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        for name in ("a", "b"):
            slow.call("DELETE", f"/v1/requests/{name}")
        assert [one.result(30).status for one in held] == [499, 499]


def test_images_kept_for_an_address_are_few_and_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    service = fake(kept=2, kept_seconds=100)
    with in_thread(service) as served:
        body = {"prompt": "w1", "response_format": "url"}
        urls = [served.post(DRAW, body).json["data"][0]["url"].removeprefix(served.url) for _ in range(3)]
        assert [served.call("GET", url).status for url in urls] == [404, 200, 200]
    names = [url.rpartition("/")[2] for url in urls]
    later = time.monotonic() + 101
    monkeypatch.setattr("flashu.server.outcome.time.monotonic", lambda: later)
    assert [service.kept.get(name) for name in names] == [None] * 3


# -- counters ----------------------------------------------------------------------------------------------------
def test_counters(editing: Served) -> None:
    before = {name: editing.metric(name) for name in ("flashu_tokens_total", "flashu_drawing_steps_total")}
    answer = editing.post(CHAT, {"messages": SAYS}).json
    editing.post(DRAW, {"prompt": "w1", "n": 2})
    assert editing.metric("flashu_tokens_total") - before["flashu_tokens_total"] == answer["usage"]["completion_tokens"]
    assert editing.metric("flashu_drawing_steps_total") - before["flashu_drawing_steps_total"] == 32
    text = editing.call("GET", "/metrics").data.decode()
    names = {family.name for family in text_string_to_metric_families(text)}
    assert {
        "flashu_waiting_samples",
        "flashu_forward_rows",
        "flashu_phase_seconds",
        "flashu_first_token_seconds",
    } <= names
    assert 'path="/v1/chat/completions",status="200"' in text


def test_openapi_describes_every_route(editing: Served) -> None:
    schema = editing.call("GET", "/openapi.json").json
    assert set(schema["paths"]) == {
        "/v1/images/generations", "/v1/images/edits", "/v1/images/results/{name}", "/v1/chat/completions",
        "/v1/models", "/v1/models/{name}", "/v1/requests/{name}", "/health", "/ready", "/metrics",
    }  # fmt: skip
    text = json.dumps(schema)
    for ref in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        assert ref in schema["components"]["schemas"]


# -- the end -----------------------------------------------------------------------------------------------------
def test_sigterm_loses_nothing() -> None:
    """What was accepted is finished; what comes later is refused; the process ends by itself, with success."""
    with in_process("--drawing", "2") as served, ThreadPoolExecutor(8) as pool:
        assert served.process is not None
        body = {"prompt": "a red circle", "num_inference_steps": 8}
        asked = [pool.submit(served.post, DRAW, body | {"seed": n}) for n in range(6)]
        wait_for(lambda: served.metric('flashu_running_samples{task="generation"') == 2)
        wait_for(lambda: served.metric("flashu_waiting_samples") == 4)
        served.process.send_signal(signal.SIGTERM)
        wait_for(lambda: served.call("GET", "/ready").status == 503)
        late = served.post(DRAW, body)
        assert late.status == 503
        assert "retry-after" in late.headers
        assert [one.result(120).status for one in asked] == [200] * 6
        assert served.process.wait(60) == 0


def test_settings_that_cannot_be() -> None:
    for wrong in ({"batching": "none at all"}, {"answer_share": 1}, {"drawing": 0}, {"timeout": 0}, {"api_key": " "}):
        with pytest.raises(FlashUError):
            ServeSettings(**wrong)  # type: ignore[arg-type]
