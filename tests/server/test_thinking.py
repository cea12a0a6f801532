"""A model that thinks in text before it draws, and has settings of its own: both go through the server."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from PIL import Image

import flashu
from flashu.errors import FlashUError
from flashu.inference.actions import Action, Append, Decode, Draw, DrawRequest
from flashu.plan import MAIN
from flashu.plan.recipe import Recipe
from flashu.server.service import Service
from flashu.server.settings import ServeSettings
from tests.fakes.masked import seeded
from tests.fakes.tokens import BOI, BOS, EOS, Processor, TokenModel, TokenModelLayout, ids_of, text_segment
from tests.server.served import Served, data_url, in_thread, picture, png

DRAW, CHAT, EDIT = "/v1/images/generations", "/v1/chat/completions", "/v1/images/edits"


class ThinkingLayout(TokenModelLayout):
    """Thinks three tokens; ``warmth`` is the guidance scale by another name, for a test."""

    thinks = True
    settings = frozenset({"warmth", "colours"})

    def draw(self, requests: Sequence[DrawRequest], recipe: Recipe) -> list[list[Action]]:
        scripts = super().draw(requests, recipe)
        return [self._thought(r, script) if r.think else script for r, script in zip(requests, scripts, strict=True)]

    def _drawing(self, request: DrawRequest) -> list[Action]:
        warmth = request.own.get("warmth", 0)
        if not 0 <= warmth <= 9:
            raise FlashUError("warmth lies between 0 and 9")
        return super()._drawing(request)

    def _thought(self, request: DrawRequest, script: list[Action]) -> list[Action]:
        head = text_segment([BOS, *ids_of(request.prompt)])
        think = Decode(MAIN, frozenset((EOS,)), 3, (BOI,), text_segment)
        return [Append((MAIN,), (head,)), think, *(a for a in script if isinstance(a, Draw) or MAIN not in a.to)]  # type: ignore[union-attr]


class ThinkingModel(TokenModel):
    def layout(self, processor: Processor) -> ThinkingLayout:
        return ThinkingLayout(processor)


@pytest.fixture(scope="module")
def engine() -> flashu.Engine:
    model = seeded(ThinkingModel)
    return flashu.Engine(model, model.processor)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def thinking(engine: flashu.Engine) -> Iterator[Served]:
    with in_thread(Service({"exact": engine}, ServeSettings(), "fake")) as served:
        yield served


def test_a_thought_before_a_drawing(thinking: Served, engine: flashu.Engine) -> None:
    (run,) = engine.runs_to_draw([DrawRequest("w1 w2", 3, think=True)])
    with torch.inference_mode():
        executor = engine.executor()
        while not run.done:
            run.step(executor)
    image, text = engine.decode(run.drawn[-1][None])[0], engine.layout.text(run.text)
    assert text
    body = {"prompt": "w1 w2", "seed": 3, "think": True}
    item = thinking.post(DRAW, body).json["data"][0]
    assert item["flashu"]["thought"] == text
    assert picture(item["b64_json"]).tobytes() == image.tobytes()
    streamed = thinking.post(DRAW, body | {"stream": True}).data.decode().splitlines()
    events = [json.loads(line[6:]) for line in streamed if line.startswith("data: ")]
    assert "".join(e["text"] for e in events if e["type"] == "flashu.thought") == text
    assert events[-1]["flashu"]["thought"] == text
    message = {"messages": [{"role": "user", "content": "w1 w2"}], "modalities": ["image"], "seed": 3, "think": True}
    url = thinking.post(CHAT, message).json["choices"][0]["message"]["content"][0]["image_url"]["url"]
    assert base64.b64decode(url.partition(",")[2]) == base64.b64decode(item["b64_json"])


def test_settings_of_its_own(thinking: Served) -> None:
    for body in ({"warmth": 2}, {"colours": [1, 2]}):
        answer = thinking.post(DRAW, {"prompt": "w1", **body})
        assert answer.status == 200
        assert answer.json["flashu"].items() >= body.items()
    for wrong in (10, "hot", None, {"a": 1}, [[1]]):
        answer = thinking.post(DRAW, {"prompt": "w1", "warmth": wrong})
        assert answer.status == 400
        assert answer.error["param"] == "warmth"
    assert thinking.form(EDIT, [("prompt", "w1"), ("warmth", "2")], [("image", png(size=(4, 4)))]).status == 200
    assert thinking.form(EDIT, [("prompt", "w1"), ("warmth", "hot")], [("image", png(size=(4, 4)))]).status == 400
    chat: dict[str, Any] = {"messages": [{"role": "user", "content": "w1"}], "extra_body": {"warmth": 3}}
    assert thinking.post(CHAT, chat).error["param"] == "warmth"
    assert thinking.post(CHAT, chat | {"modalities": ["image"]}).status == 200
    about = thinking.call("GET", "/v1/models").json["data"][0]["flashu"]
    assert (about["thinks"], about["settings"]) == (True, ["colours", "warmth"])


def test_pictures_between_texts_stay_there(scenes: flashu.Engine) -> None:
    """A row of ids, as the model's processor writes it, where a message has text before an image."""
    image = data_url(png())
    shown, asks = (
        {"type": "image_url", "image_url": {"url": image}},
        {"type": "text", "text": "how many circles are there?"},
    )
    with in_thread(Service({"exact": scenes}, ServeSettings(), "scenes")) as served:

        def said(*content: dict[str, Any]) -> str:
            answer = served.post(CHAT, {"messages": [{"role": "user", "content": content}]})
            assert answer.status == 200, answer.data
            return answer.json["choices"][0]["message"]["content"]

        picture_of = Image.new("RGB", (64, 64), (200, 30, 30))
        before = scenes.answer(picture_of, "how many circles are there?").text
        between = scenes.answer(picture_of, "look\n<image>\nhow many circles are there?").text
        assert said(shown, asks) == said(asks, shown) == before
        assert said({"type": "text", "text": "look"}, shown, asks) == between
        literal = {"messages": [{"role": "user", "content": [{"type": "text", "text": "<image>"}]}]}
        assert served.post(CHAT, literal).error["param"] == "messages"
