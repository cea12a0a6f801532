"""Uploads, by the hub's own client, to a server here that answers as the hub does."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

import flashu
from flashu.models import hub
from tests.conftest import tiny_model

TOKEN = "hf_made_up"


@dataclass
class Hub:
    """What was asked of it, and the files of the last commit."""

    address: str = ""
    created: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    message: str = ""

    def answer(self, path: str, token: str | None, body: bytes) -> tuple[int, dict[str, Any]]:
        if token != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid username or password."}
        if path == "/api/repos/create":
            self.created = json.loads(body)
            return 200, {"url": f"{self.address}/someone/{self.created['name']}"}
        if path.startswith("/api/models/someone/shapes/preupload/"):
            listed = json.loads(body)["files"]
            return 200, {"files": [f | {"uploadMode": "regular", "shouldIgnore": False} for f in listed]}
        if path.startswith("/api/models/someone/shapes/commit/"):
            header, *rest = (json.loads(line) for line in body.splitlines())
            self.message = header["value"]["summary"]
            self.files = {f["value"]["path"]: base64.b64decode(f["value"]["content"]) for f in rest}
            done = {"success": True, "commitOid": "0" * 40, "hookOutput": ""}
            return 200, done | {"commitUrl": f"{self.address}/someone/shapes/commit/{'0' * 40}"}
        return 404, {"error": "not here"}


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    known = Hub()

    class Desk(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            parts = []
            if self.headers.get("Transfer-Encoding") == "chunked":
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
            else:
                parts.append(self.rfile.read(int(self.headers.get("Content-Length", 0))))
            status, value = known.answer(self.path.split("?")[0], self.headers.get("Authorization"), b"".join(parts))
            said = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        do_GET = do_POST

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Desk)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    known.address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", known.address)
    # Whoever runs the tests may be logged in: that is no business of theirs.
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    yield known
    server.shutdown()
    server.server_close()


def arrived(served: Hub, folder: Path) -> Path:
    """The pushed files as a folder."""
    folder.mkdir()
    for name, data in served.files.items():
        (folder / name).write_bytes(data)
    return folder


def test_a_model_is_pushed_as_it_is_saved(served: Hub, tmp_path: Path) -> None:
    model = flashu.ShowO2.from_pretrained("scenes")
    address = model.push_to_hub("shapes", "Shapes", private=True, token=TOKEN)
    assert address.startswith(f"{served.address}/someone/shapes/commit/")
    assert (served.created["name"], served.message) == ("shapes", "Shapes")
    assert served.created.get("private") or served.created.get("visibility") == "private"
    model.save_pretrained(tmp_path / "saved")
    assert served.files.keys() == {file.name for file in (tmp_path / "saved").iterdir()}
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert served.files[name] == (tmp_path / "saved" / name).read_bytes()
    twin = flashu.ShowO2.from_pretrained(arrived(served, tmp_path / "arrived"))
    assert twin.calibration is not None


def test_a_pipeline_brings_its_recipe(served: Hub, tmp_path: Path) -> None:
    pipe = flashu.Pipeline.from_pretrained("scenes", recipe="quality")
    assert "/commit/" in pipe.push_to_hub("someone/shapes", token=TOKEN)
    names = set(served.files)
    assert flashu.Pipeline.from_pretrained(arrived(served, tmp_path / "arrived")).engine.recipe == pipe.engine.recipe
    pipe.save_pretrained(tmp_path / "shapes", push_to_hub=True, token=TOKEN)  # into the repository of that name
    assert (served.created["name"], set(served.files)) == ("shapes", names)


@pytest.mark.parametrize("token", [None, "hf_wrong"])
def test_without_a_token_it_says_how_to_get_one(token: str | None, served: Hub) -> None:
    with pytest.raises(flashu.FlashUError, match=r"someone/shapes could not be written .*401.*hf auth login"):
        tiny_model_without_a_picture_side().push_to_hub("someone/shapes", token=token)
    assert not served.files


def test_an_unreachable_hub_is_said_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise hub.UNREACHABLE[-1]("no route to host")

    monkeypatch.setattr(hub.HfApi, "create_repo", offline)
    with pytest.raises(flashu.FlashUError, match=r"a/b could not be written .*no route.*hf upload a/b"):
        tiny_model_without_a_picture_side().push_to_hub("a/b")


def tiny_model_without_a_picture_side() -> flashu.ShowO2:
    model = tiny_model()
    assert model.processor is not None
    model.processor.vae = None  # the tests' own autoencoder is of no kind that can be saved
    return model
