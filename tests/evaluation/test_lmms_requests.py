"""What surrounds a harness' questions."""

from __future__ import annotations

from PIL import Image

from flashu.evaluation.lmms_requests import beside, cut, grouped


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
