"""Numbers beyond reason: one clear error before anything is listed or allocated, for every way to ask."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

import flashu
from flashu.cli import options
from flashu.models.defaults import GenerationDefaults
from flashu.plan.limits import LIMITS

HUGE = 16 * 10**9
PICTURE = Image.new("RGB", (64, 64))


@pytest.fixture
def nothing_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    def computed(*args: object) -> None:
        raise AssertionError("a request is carried out although a number is unusable")

    monkeypatch.setattr("flashu.inference.engine.complete", computed)


@pytest.mark.usefixtures("nothing_is_drawn")
@pytest.mark.parametrize("name", ["steps", "guidance", "height", "width", "images_per_prompt", "batch_size"])
def test_drawing(name: str, tiny_engine: flashu.Engine) -> None:
    asked: dict[str, Any] = {name: HUGE}
    with pytest.raises(flashu.FlashUError, match=f"{name} is {HUGE}, beyond .*: {LIMITS[name].reason}"):
        tiny_engine.generate("w1", **asked)
    if name != "images_per_prompt":
        with pytest.raises(flashu.FlashUError, match=f"{name} is {HUGE}"):
            tiny_engine.edit(PICTURE, "w1", **{"text_guidance" if name == "guidance" else name: HUGE})
    if name not in ("images_per_prompt", "batch_size"):
        with pytest.raises(flashu.FlashUError, match=f"{name} is {HUGE}"):
            tiny_engine.explain("generation", **asked)


@pytest.mark.usefixtures("nothing_is_drawn")
def test_answering(tiny_engine: flashu.Engine) -> None:
    asked: dict[str, Any] = {"max_new_tokens": HUGE}
    for ask in (
        lambda: tiny_engine.answer(PICTURE, "w1", **asked),
        lambda: tiny_engine.chat("w1", **asked),
        lambda: tiny_engine.stream(PICTURE, "w1", **asked),
        lambda: tiny_engine.explain("understanding", **asked),
    ):
        with pytest.raises(flashu.FlashUError, match=f"max_new_tokens is {HUGE}, beyond 32768"):
            ask()


@pytest.mark.parametrize("name", ["steps", "guidance", "height", "width", "max_new_tokens"])
def test_the_defaults_of_a_checkpoint(name: str) -> None:
    for value in (HUGE, None):
        with pytest.raises(flashu.FlashUError, match=name):
            GenerationDefaults(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0, -1, 1.5, "8", float("nan")])
def test_what_is_no_count_at_all(value: Any, tiny_engine: flashu.Engine) -> None:
    with pytest.raises(flashu.FlashUError, match="batch_size must be a whole number of at least 1"):
        tiny_engine.generate("w1", batch_size=value)


def test_the_command_line_has_the_same_limits() -> None:
    assert {name: options.LIMITS[name] for name in LIMITS} == LIMITS
