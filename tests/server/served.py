"""Servers to test: in a thread of this process, or a process of their own."""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from PIL import Image

from flashu.server.app import create_app
from flashu.server.serve import DrainingServer
from flashu.server.service import Service


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    data: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.data)

    @property
    def error(self) -> dict[str, Any]:
        return self.json["error"]


@dataclass
class Served:
    url: str
    service: Service | None = None
    process: subprocess.Popen[str] | None = None

    def connection(self, timeout: float = 900) -> http.client.HTTPConnection:
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        return http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout)

    def call(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        """One request on a connection of its own; a body that is no bytes goes as JSON."""
        own = dict(headers or {})
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            own.setdefault("Content-Type", "application/json")
        connection = self.connection()
        try:
            connection.request(method, path, body, own)
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def post(self, path: str, body: Any, **headers: str) -> Answer:
        return self.call("POST", path, body, headers)

    def form(self, path: str, fields: list[tuple[str, str]], files: list[tuple[str, bytes]] = ()) -> Answer:  # type: ignore[assignment]
        edge = uuid.uuid4().hex
        parts = [f'--{edge}\r\nContent-Disposition: form-data; name="{n}"\r\n\r\n{v}\r\n'.encode() for n, v in fields]
        for name, data in files:
            head = f'--{edge}\r\nContent-Disposition: form-data; name="{name}"; filename="../../x.png"\r\n\r\n'
            parts.append(head.encode() + data + b"\r\n")
        body = b"".join(parts) + f"--{edge}--\r\n".encode()
        return self.call("POST", path, body, {"Content-Type": f"multipart/form-data; boundary={edge}"})

    def metric(self, name: str) -> float:
        """The sum of a counter over its labels."""
        text = self.call("GET", "/metrics").data.decode()
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))


@contextmanager
def in_thread(service: Service) -> Iterator[Served]:
    """A service behind a real socket, in this process."""
    port: list[int] = []
    up = threading.Event()

    def ready(at: int) -> None:
        port.append(at)
        up.set()

    config = uvicorn.Config(create_app(service), "127.0.0.1", 0, log_level="warning", server_header=False)
    server = DrainingServer(config, service, ready)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert up.wait(60)
    try:
        yield Served(f"http://127.0.0.1:{port[0]}", service)
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


@contextmanager
def in_process(*options: str, env: dict[str, str] | None = None) -> Iterator[Served]:
    """`flashu serve` itself."""
    command = [sys.executable, "-m", "flashu", "serve", "--port", "0", "--threads", "1", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **(env or {})})
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("serving "), line
        yield Served(line.split()[-1], None, process)
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(60)
        assert process.stdout is not None
        process.stdout.close()


def png(colour: tuple[int, int, int] = (200, 30, 30), size: tuple[int, int] = (64, 64), kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, kind)
    return file.getvalue()


def data_url(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def picture(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")
