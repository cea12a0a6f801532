"""Drafted answers are the same, for a model of two experts whose pictures stand at one position."""

from __future__ import annotations

from PIL import Image

from tests.drafts import check_answers
from tests.models.bagel.golden.engines import engine

PICTURE = Image.new("RGB", (32, 32))


def test_drafts() -> None:
    check_answers(engine(), lambda e: e.answer([PICTURE] * 2, ["5,7,9", "11,3,20,8"], max_new_tokens=10))
    check_answers(engine(), lambda e: e.chat(["5,7", "4,4,6"], max_new_tokens=10))
