"""A long run of mixed requests against `flashu serve`: python -m tests.server.soak --requests 20000

Draws, asks, streams, cancels, hangs up, sends what is malformed, and in the middle ends the server by SIGTERM and
starts another. Counts what was lost (accepted without an answer), wrong (not the engine's own result) or a 5xx other
than a 503 while draining, and the growth of the server's memory.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import flashu
from flashu.scenes import benchmark
from flashu.scenes.captions import CATEGORIES
from flashu.scenes.world import render
from tests.server.served import Answer, Served, data_url, in_process, picture

DRAW, CHAT, EDIT = "/v1/images/generations", "/v1/chat/completions", "/v1/images/edits"
PRESETS = ("exact", "paper")
STEPS = 3
MALFORMED: list[tuple[str, bytes]] = [
    (DRAW, b"{"),
    (DRAW, b"[" * 5000),
    (DRAW, b'{"prompt": ""}'),
    (DRAW, b'{"prompt": "a red circle", "n": 99}'),
    (DRAW, b'{"prompt": "a red circle", "size": "63x64"}'),
    (DRAW, b'{"prompt": "a red circle", "colour": 1}'),
    (DRAW, b'{"prompt": "\\ud800"}'),
    (DRAW, b'{"prompt": "a", "guidance_scale": NaN}'),
    (CHAT, b'{"messages": []}'),
    (CHAT, b'{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///x"}}]}]}'),
    (CHAT, b'{"messages": [{"role": "user", "content": "a"}], "temperature": -1}'),
    (EDIT, b"no form"),
]


@dataclass
class Known:
    """A request and the engine's own result."""

    path: str
    body: dict[str, Any]
    right: Callable[[Answer], bool]


@dataclass
class Tally:
    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, what: str, problem: str | None = None) -> None:
        with self.lock:
            self.counts[what] += 1
            if problem is not None:
                self.counts["problems"] += 1
                self.problems.append(problem[:300])


def known_requests(count: int) -> list[Known]:
    """Drawings and questions with what the engine alone makes of them."""
    engine = flashu.load("scenes")
    prompts = [p.text for category in CATEGORIES for p in benchmark.prompts(category, 2, seed=5)][:count]
    asked = [q for kind in benchmark.QUESTION_KINDS for q in benchmark.questions(kind, 2, seed=7)][:count]
    found: list[Known] = []
    for preset in PRESETS:
        own = engine.with_recipe(preset)
        for n, prompt in enumerate(prompts):
            image = own.generate(prompt, seed=n, steps=STEPS).images[0]
            body = {"prompt": prompt, "seed": n, "num_inference_steps": STEPS, "preset": preset}
            found.append(Known(DRAW, body, lambda answer, image=image: _near(answer, image)))
        for question, pixels in zip(asked, render([q.scene for q in asked]), strict=True):
            shown = Image.fromarray(pixels)
            file = io.BytesIO()
            shown.save(file, "PNG")
            parts = [
                {"type": "text", "text": question.text},
                {"type": "image_url", "image_url": {"url": data_url(file.getvalue())}},
            ]
            text = own.answer(shown, question.text).text
            body = {"messages": [{"role": "user", "content": parts}], "preset": preset}
            found.append(Known(CHAT, body, lambda answer, text=text: _said(answer) == text))
    return found


def _near(answer: Answer, image: Image.Image) -> bool:
    drawn = picture(answer.json["data"][0]["b64_json"])
    return int(np.abs(np.asarray(drawn, dtype=int) - np.asarray(image, dtype=int)).max()) <= 2


def _said(answer: Answer) -> str:
    if not answer.headers["content-type"].startswith("text/event-stream"):
        return answer.json["choices"][0]["message"]["content"]
    frames = [line[6:] for line in answer.data.decode().splitlines() if line.startswith("data: {")]
    return "".join(c["delta"].get("content", "") for frame in frames for c in json.loads(frame)["choices"])


class Load:
    """Clients that send until there is nothing left to send."""

    def __init__(self, served: Served, known: list[Known], tally: Tally, count: int, seed: int) -> None:
        self.served, self.known, self.tally = served, known, tally
        self._left, self._lock = count, threading.Lock()
        self._seed = seed
        self.stopping = False

    def run(self, clients: int) -> None:
        threads = [threading.Thread(target=self._client, args=(self._seed + n,)) for n in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    @property
    def left(self) -> int:
        return self._left

    def _client(self, seed: int) -> None:
        chance = random.Random(seed)
        while True:
            with self._lock:
                if self._left <= 0:
                    return
                self._left -= 1
            kind = chance.random()
            one = chance.choice(self.known)
            if kind < 0.55:
                self._whole(one, chance.random() < 0.4)
            elif kind < 0.70:
                self._malformed(*chance.choice(MALFORMED))
            elif kind < 0.78:
                self._fuzzed(one, chance)
            elif kind < 0.88:
                self._hung_up(one, chance)
            else:
                self._cancelled(one, chance)

    def _whole(self, one: Known, stream: bool) -> None:
        stream = stream and one.path == CHAT
        try:
            answer = self.served.post(one.path, one.body | ({"stream": True} if stream else {}))
        except OSError as error:
            # Nobody accepts connections between the end of the draining server and the start of the next.
            self.tally.note("refused" if self.stopping else "lost", None if self.stopping else f"lost: {error!r}")
            return
        if answer.status == 503 and self.stopping:
            self.tally.note("drained 503")
        elif answer.status == 429:
            self.tally.note("429")
        elif answer.status != 200:
            self.tally.note("bad status", f"{answer.status} for {str(one.body)[:80]}: {answer.data[:100]!r}")
        elif not one.right(answer):
            self.tally.note("wrong", f"wrong: {str(one.body)[:80]}")
        else:
            self.tally.note("right, streamed" if stream else "right")

    def _expect_4xx(self, what: str, send: Callable[[], Answer]) -> None:
        try:
            answer = send()
        except OSError as error:
            self.tally.note("refused" if self.stopping else "lost", None if self.stopping else f"lost: {error!r}")
            return
        fine = 400 <= answer.status < 500 or (answer.status == 503 and self.stopping)
        self.tally.note(what, None if fine else f"{answer.status} for {what}: {answer.data[:100]!r}")

    def _malformed(self, path: str, body: bytes) -> None:
        self._expect_4xx(
            "malformed", lambda: self.served.call("POST", path, body, {"Content-Type": "application/json"})
        )

    def _fuzzed(self, one: Known, chance: random.Random) -> None:
        """A good body with one byte changed: anything but a 5xx."""
        data = bytearray(json.dumps(one.body).encode())
        data[chance.randrange(min(len(data), 400))] = chance.randrange(256)
        try:
            answer = self.served.call("POST", one.path, bytes(data), {"Content-Type": "application/json"})
        except OSError as error:
            self.tally.note("refused" if self.stopping else "lost", None if self.stopping else f"lost: {error!r}")
            return
        fine = answer.status < 500 or (answer.status == 503 and self.stopping)
        self.tally.note("fuzzed", None if fine else f"{answer.status} for {bytes(data)[:100]!r}")

    def _hung_up(self, one: Known, chance: random.Random) -> None:
        connection = self.served.connection()
        try:
            body = one.body | {"stream": chance.random() < 0.5}
            connection.request("POST", one.path, json.dumps(body), {"Content-Type": "application/json"})
            time.sleep(chance.random() * 0.05)
            if connection.sock is not None:
                connection.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        connection.close()
        self.tally.note("hung up")

    def _cancelled(self, one: Known, chance: random.Random) -> None:
        name = f"{chance.getrandbits(64):x}"

        def cancel() -> None:
            time.sleep(chance.random() * 0.1)
            try:
                self.served.call("DELETE", f"/v1/requests/{name}")
            except OSError:
                return

        other = threading.Thread(target=cancel)
        other.start()
        try:
            answer = self.served.call("POST", one.path, one.body, {"X-Request-Id": name})
            fine = answer.status in (200, 429, 499) or (answer.status == 503 and self.stopping)
            right = answer.status != 200 or one.right(answer)
            self.tally.note(f"cancelled, {answer.status}", None if fine and right else f"{answer.status}: cancelled")
        except OSError as error:
            self.tally.note("refused" if self.stopping else "lost", None if self.stopping else f"lost: {error!r}")
        other.join()


def memory(process: subprocess.Popen[str]) -> float:
    """MB that a process holds."""
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def soak(requests: int, clients: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    known = known_requests(12)
    tally, began = Tally(), time.monotonic()
    slopes, curves = [], []
    for half in range(2):
        with in_process("--presets", "paper", "--queue", "64") as served:
            assert served.process is not None
            load = Load(served, known, tally, requests // 2, 1000 * half)
            curve: list[tuple[int, float]] = []

            def watch(load: Load = load, process: Any = served.process, curve: Any = curve) -> None:
                while load.left > 0 and process.poll() is None:
                    curve.append((requests // 2 - load.left, memory(process)))
                    print(requests // 2 - load.left, f"{curve[-1][1]:.0f} MB", dict(tally.counts), file=sys.stderr)
                    time.sleep(max(2.0, 0.01 * (time.monotonic() - began)))

            watcher = threading.Thread(target=watch)
            watcher.start()
            run = threading.Thread(target=load.run, args=(clients,))
            run.start()
            if half == 0:
                # SIGTERM while everything is under way; what is sent after it is refused, what was accepted is not.
                while load.left > requests // 50:
                    time.sleep(0.05)
                load.stopping = True
                served.process.send_signal(signal.SIGTERM)
                run.join()
                code = served.process.wait(120)
                tally.note("ended by SIGTERM", None if code == 0 else f"exit code {code}")
            run.join()
            watcher.join()
            late = [(n, mb) for n, mb in curve if n > requests // 10]
            if len(late) > 2:
                slopes.append(float(np.polyfit([n for n, _ in late], [mb for _, mb in late], 1)[0]) * 1000)
            curves.append(curve[:: max(1, len(curve) // 40)])
    return {
        "requests": requests,
        "clients": clients,
        "seconds": round(time.monotonic() - began),
        "counts": dict(sorted(tally.counts.items())),
        "problems": tally.problems[:20],
        "MB per 1000 requests, after the first tenth": [round(slope, 3) for slope in slopes],
        "memory": curves,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--clients", type=int, default=24)
    given = parser.parse_args()
    result = soak(given.requests, given.clients)
    print(json.dumps(result, indent=1))
    sys.exit(bool(result["problems"]))
