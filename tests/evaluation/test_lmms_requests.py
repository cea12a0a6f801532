"""What surrounds a harness' questions."""

from __future__ import annotations

import pytest
from PIL import Image

from flashu.errors import FlashUError
from flashu.evaluation.lmms_requests import beside, cut, grouped, request_of


def test_requests_with_equal_settings_go_together() -> None:
    settings = [{"until": "a", "n": 1}, {"n": 2}, {"n": 1, "until": "a"}, {"n": 1, "until": "a"}]
    assert list(grouped(settings, 2)) == [([0, 2], settings[0]), ([3], settings[0]), ([1], settings[1])]


def test_answers_end_at_the_first_stop_word() -> None:
    assert cut(" yes\n\nno", "\n\n") == "yes"
    assert cut("a b c", ["c", "b", ""]) == "a"
    assert cut(" a ", None) == "a"


def test_images_stand_side_by_side() -> None:
    red, blue = Image.new("RGB", (10, 20), "red"), Image.new("L", (20, 10))
    assert beside([red]).tobytes() == red.tobytes()
    both = beside([red, blue])
    assert both.size == (50, 20)
    assert both.getpixel((0, 0)) == (255, 0, 0)
    assert both.getpixel((49, 19)) == (0, 0, 0)


def test_what_a_question_shows_and_where() -> None:
    red, blue = Image.new("RGB", (4, 2)), Image.new("RGB", (6, 2))
    image = lambda url: {"type": "image", "url": url}  # noqa: E731
    text = lambda words: {"type": "text", "text": words}  # noqa: E731
    between = [
        {"role": "user", "content": [text("compare "), image(red), text(" with <image>"), image(blue), text("?")]}
    ]
    several = request_of(between, None, 5)
    assert (several.text, several.images, several.max_new_tokens) == (
        "compare <image> with <image>?",
        (red, blue),
        5,
    )
    one = request_of(between, 1, None)
    assert one.text == "compare  with ?"
    assert [picture.size for picture in one.images] == [(10, 2)]
    before = request_of([{"role": "user", "content": [image(red), image(blue), text("which?")]}], None, None)
    assert (before.text, len(before.images)) == ("which?", 2)
    assert request_of([{"role": "user", "content": "no picture"}], None, None).images == ()
    with pytest.raises(FlashUError, match="audio"):
        request_of([{"role": "user", "content": [{"type": "audio", "url": "a"}]}], None, None)
