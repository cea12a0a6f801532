"""Whatever is sent: a 4xx with one sentence and the field's name, and a server that still works."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

import flashu
from flashu.server.schemas import Chat, Edit, Generate
from flashu.server.service import Service
from flashu.server.settings import ServeSettings
from tests.fakes.masked import seeded
from tests.fakes.tokens import TokenModel
from tests.server.served import Answer, Served, data_url, in_thread, png

DRAW, EDIT, CHAT = "/v1/images/generations", "/v1/images/edits", "/v1/chat/completions"
LIMITS = ServeSettings(n=4, steps=100, pixels=4096, body=200_000, images=2, max_tokens=50, read_timeout=5)
SAYS = {"role": "user", "content": "w1 w2"}


@pytest.fixture(scope="module")
def small() -> Iterator[Served]:
    """A fake model that draws, sees and edits 4 x 4 pixels, with small limits."""
    model = seeded(TokenModel)
    with in_thread(Service({"exact": flashu.Engine(model, model.processor)}, LIMITS, "fake")) as served:  # type: ignore[arg-type]
        yield served


@pytest.fixture(autouse=True)
def works_afterwards(small: Served) -> Iterator[None]:
    yield
    assert small.post(CHAT, {"messages": [SAYS], "max_tokens": 1}).status == 200


def refused(answer: Answer, param: str | None, status: int = 400) -> str:
    assert answer.status == status, answer.data
    error = answer.error
    assert error["param"] == param, error
    message = error["message"]
    assert message
    assert "\n" not in message
    assert len(message) < 400
    if param is not None:
        assert param.partition(".")[0] in message
    return message


def with_image(url: str) -> dict[str, Any]:
    part = {"type": "image_url", "image_url": {"url": url}}
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "w1"}, part]}]}


DRAWING: list[tuple[dict[str, Any], str]] = [
    ({}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": " "}, "prompt"),
    ({"prompt": "a" * 100_001}, "prompt"),
    ({"n": 0}, "n"),
    ({"n": 5}, "n"),
    ({"n": 11}, "n"),
    ({"n": 1.5}, "n"),
    ({"n": True}, "n"),
    ({"size": "64"}, "size"),
    ({"size": "0x64"}, "size"),
    ({"size": "64x"}, "size"),
    ({"size": "-4x4"}, "size"),
    ({"size": "4 x 4"}, "size"),
    ({"size": "99999x99999"}, "size"),
    ({"size": "128x128"}, "size"),
    ({"seed": -1}, "seed"),
    ({"seed": 2**63}, "seed"),
    ({"seed": 10**400}, "seed"),
    ({"num_inference_steps": 0}, "num_inference_steps"),
    ({"num_inference_steps": 101}, "num_inference_steps"),
    ({"num_inference_steps": 10**9}, "num_inference_steps"),
    ({"guidance_scale": -1}, "guidance_scale"),
    ({"guidance_scale": 1001}, "guidance_scale"),
    ({"guidance_scale": math.nan}, "guidance_scale"),
    ({"guidance_scale": math.inf}, "guidance_scale"),
    ({"negative_prompt": "w2"}, "negative_prompt"),
    ({"preset": "fastest"}, "preset"),
    ({"preset": "../exact"}, "preset"),
    ({"preset": ""}, "preset"),
    ({"response_format": "jpg"}, "response_format"),
    ({"output_format": "gif"}, "output_format"),
    ({"output_format": "jpeg", "output_compression": 101}, "output_compression"),
    ({"output_compression": 50}, "output_compression"),
    ({"stream": True, "response_format": "url"}, "response_format"),
    ({"partial_images": 2}, "partial_images"),
    ({"partial_images": 101, "stream": True}, "partial_images"),
    ({"quality": "high"}, "quality"),
    ({"steps": 8}, "steps"),
    ({"cfg_text_scale": 4.0}, "cfg_text_scale"),
]
TYPES: list[tuple[dict[str, Any], str]] = [
    ({"prompt": 3}, "prompt"),
    ({"prompt": ["a"]}, "prompt"),
    ({"prompt": None}, "prompt"),
    ({"prompt": "\ud800"}, "prompt"),
    ({"n": "2"}, "n"),
    ({"size": 4}, "size"),
    ({"seed": "1"}, "seed"),
    ({"seed": 1.0}, "seed"),
    ({"num_inference_steps": "8"}, "num_inference_steps"),
    ({"guidance_scale": "5"}, "guidance_scale"),
    ({"stream": "yes"}, "stream"),
    ({"images": ["/etc/passwd"]}, "images"),
]
"""Not of a form, where everything is text."""


@pytest.mark.parametrize(("fields", "param"), DRAWING + TYPES, ids=lambda v: str(v)[:40])
def test_drawing(fields: dict[str, Any], param: str, small: Served) -> None:
    refused(small.post(DRAW, ({"prompt": "w1"} if fields else {}) | fields), param)


def test_a_name_that_is_no_name(small: Served) -> None:
    assert small.post(DRAW, {"prompt": "w1", "a b": 1}).status == 400


@pytest.mark.parametrize(("fields", "param"), DRAWING, ids=lambda v: str(v)[:40])
def test_editing(fields: dict[str, Any], param: str, small: Served) -> None:
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}
    body = ({"prompt": "w1"} if fields else {}) | texts
    refused(small.form(EDIT, list(body.items()), [("image", png(size=(4, 4)))]), param)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [SAYS, SAYS]}, "messages"),
        ({"messages": [{"role": "system", "content": "w1"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": " "}]}, "messages"),
        ({"messages": [{"role": "user", "content": []}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": ""}]}]}, "messages"),
        ({"messages": [SAYS | {"tools": 1}]}, "messages.0.tools"),
        ({"model": "gpt-4o", "messages": [SAYS]}, "model"),
        ({"modalities": ["audio"]}, "modalities.0"),
        ({"modalities": []}, "modalities"),
        ({"modalities": ["text", "image"]}, "modalities"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 51}, "max_tokens"),
        ({"max_completion_tokens": 51}, "max_completion_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 5}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"seed": -1}, "seed"),
        ({"n": 0}, "n"),
        ({"n": 5}, "n"),
        ({"think": True}, "think"),
        ({"think": "yes"}, "think"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
        ({"guidance_scale": 3.0}, "guidance_scale"),
        ({"modalities": ["image"], "max_tokens": 5}, "max_tokens"),
        ({"modalities": ["image"], "size": "4x4", "width": 4}, "size"),
        ({"modalities": ["image"], "width": 0}, "width"),
        ({"modalities": ["image"], "height": 5000}, "height"),
        ({"extra_body": 3}, "extra_body"),
        ({"extra_body": {"colour": 1}}, "colour"),
        ({"extra_body": {"seed": 1}, "seed": 1}, "seed"),
        ({"tools": []}, "tools"),
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
    ],
    ids=lambda v: str(v)[:50],
)
def test_chat(body: dict[str, Any], param: str, small: Served) -> None:
    body = body if "messages" in body or not body else {"messages": [SAYS]} | body
    refused(small.post(CHAT, body), param, 404 if param == "model" else 400)


BOMB = png(size=(3000, 3000))


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1/x.png",
        "http://169.254.169.254/latest/meta-data",
        "https://example.com/x.png",
        "file:///etc/passwd",
        "ftp://example.com/x.png",
        "/etc/passwd",
        "gopher://x",
        "http://[::1/",
        "http://user@example.com/",
        "data:image/png;base64,",
        "data:image/png;base64,####",
        "data:image/png;base64,aGVsbG8=",
        "data:image/svg+xml;base64,PHN2Zy8+",
        "data:text/html,hi",
        "data:image/png,raw",
        data_url(png(size=(4, 4))[:40]),
        data_url(BOMB),
        data_url(png(size=(4, 4), kind="GIF"), "png"),
        data_url(png(size=(4, 4), kind="BMP"), "png"),
    ],
    ids=lambda url: url[:40],
)
def test_images_of_a_message(url: str, small: Served) -> None:
    refused(small.post(CHAT, with_image(url)), "messages")


def test_more_images_than_allowed(small: Served) -> None:
    image = data_url(png(size=(4, 4)))
    body = with_image(image)
    body["messages"][0]["content"] *= 3
    refused(small.post(CHAT, body), "messages")
    files = [("image[]", png(size=(4, 4)))] * 3
    refused(small.form(EDIT, [("prompt", "w1")], files), "image")


def test_images_of_an_edit(small: Served) -> None:
    prompt = [("prompt", "w1")]
    refused(small.form(EDIT, prompt), "image")
    refused(small.form(EDIT, [*prompt, ("image", "/etc/passwd")]), "image")
    refused(small.form(EDIT, prompt, [("mask", png())]), "mask")
    refused(small.form(EDIT, prompt, [("image", b"")]), "image")
    refused(small.form(EDIT, prompt, [("image", b"\x89PNG\r\n\x1a\nrest")]), "image")
    refused(small.form(EDIT, prompt, [("image", BOMB)]), "image")
    refused(small.form(EDIT, prompt * 2, [("image", png())]), "prompt")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b'"text"', 400),
        (b"null", 400),
        (b"\xff\xfe", 400),
        (b"[" * 100_000, 400),
        (b'{"prompt": "w1", "prompt": "w2"}', 400),
        (b'{"prompt": "w1", "seed": ' + b"9" * 5000 + b"}", 400),
        (b'{"prompt": "' + b"a" * 250_000 + b'"}', 413),
    ],
    ids=lambda v: str(v)[:20],
)
def test_bodies(data: bytes, status: int, small: Served) -> None:
    answer = small.call("POST", DRAW, data, {"Content-Type": "application/json"})
    assert answer.status == status
    assert answer.error["message"]


def test_other_kinds_of_body(small: Served) -> None:
    """A page of another site can send these without asking first; they are not read."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        assert small.call("POST", DRAW, b'{"prompt": "w1"}', {"Content-Type": kind}).status == 415
    assert small.post(EDIT, {"prompt": "w1"}).status == 415
    assert small.call("POST", EDIT, b"--x", {"Content-Type": "multipart/form-data"}).status == 400
    assert small.call("POST", EDIT, b"no form", {"Content-Type": "multipart/form-data; boundary=x"}).status == 400


def test_a_body_that_does_not_arrive(small: Served) -> None:
    connection = small.connection(30)
    connection.putrequest("POST", DRAW)
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", "100")
    connection.endheaders(b'{"prompt"')
    answer = connection.getresponse()
    assert answer.status == 408
    connection.close()


def test_a_body_that_is_larger_than_it_says(small: Served) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(30):
            yield b" " * 10_000

    connection = small.connection(30)
    connection.request("POST", DRAW, chunks(), {"Content-Type": "application/json"}, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


def test_paths(small: Served) -> None:
    for path in ("/v1/images/results/../../../etc/passwd", "/v1/images/results/x.png", "/page.css/../../app.py", "/x"):
        answer = small.call("GET", path)
        assert answer.status == 404
        assert answer.error["type"] == "not_found_error"
    assert small.call("GET", DRAW).status == 405
    assert small.call("DELETE", "/v1/requests/none").status == 404


# -- a fuzzer over every field, from the schemas -------------------------------------------------------------------
JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.just("\ud800"), st.just(2**70),
    st.lists(st.integers(), max_size=2), st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)  # fmt: skip


def likely(kind: type[BaseModel]) -> dict[str, st.SearchStrategy[Any]]:
    """Values for each field of a body: within its schema, at its edges, or junk."""
    found: dict[str, st.SearchStrategy[Any]] = {}
    for name, field in kind.model_json_schema()["properties"].items():
        forms = [form for form in field.get("anyOf", [field]) if form.get("type") != "null"]
        choices: list[st.SearchStrategy[Any]] = [JUNK]
        for form in forms:
            if "enum" in form:
                choices.append(st.sampled_from(form["enum"]))
            elif form.get("type") == "integer":
                low, high = form.get("minimum", 0), form.get("maximum", 2**63 - 1)
                choices.append(st.sampled_from([low - 1, low, low + 1, min(high, 9), high, high + 1]))
            elif form.get("type") == "number":
                choices.append(st.sampled_from([-1, 0, 0.5, 1, 2.5, 1e9]))
            elif form.get("type") == "boolean":
                choices.append(st.booleans())
            elif form.get("type") == "string":
                choices.append(st.sampled_from(["w1 w2", "", "4x4", "8x8", "auto", "exact", "fake", "w3"]))
        found[name] = st.one_of(choices)
    return found


def content() -> st.SearchStrategy[Any]:
    image = {"type": "image_url", "image_url": {"url": data_url(png(size=(4, 4)))}}
    part = st.one_of(st.just({"type": "text", "text": "w1"}), st.just(image), JUNK)
    return st.one_of(st.just("w1 w2"), st.lists(part, max_size=3), JUNK)


@pytest.mark.parametrize("kind", [Generate, Chat, Edit], ids=lambda kind: kind.__name__)
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_values_of_any_fields(kind: type[BaseModel], data: st.DataObject, small: Served) -> None:
    """Of mostly valid requests, a few fields at a time."""
    strategies = likely(kind)
    names = data.draw(st.lists(st.sampled_from(sorted(strategies)), max_size=3, unique=True))
    body: dict[str, Any] = {"prompt": "w1"} if kind is not Chat else {"messages": [SAYS]}
    if kind is Chat and data.draw(st.booleans()):
        body = {"messages": [{"role": "user", "content": data.draw(content())}]}
    body |= {name: data.draw(strategies[name], label=name) for name in names}
    if kind is Edit:
        texts = [(n, v if isinstance(v, str) else json.dumps(v)) for n, v in body.items()]
        texts = [(n, v.encode(errors="replace").decode()) for n, v in texts]
        answer = small.form(EDIT, texts, [("image", png(size=(4, 4)))])
    else:
        answer = small.post(CHAT if kind is Chat else DRAW, body)
    assert answer.status == 200 or 400 <= answer.status < 500, (answer.status, body)
    if answer.status != 200:
        assert answer.error["message"]
