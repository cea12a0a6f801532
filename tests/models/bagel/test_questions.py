"""Pictures before, between and after the texts of a question, as the original's interleaved rows have them."""

from __future__ import annotations

import pytest

import flashu
from flashu.inference.actions import AnswerRequest
from tests.models.bagel.golden.engines import engine, processor


def test_each_text_is_a_block_of_its_own() -> None:
    made = processor()
    place, ids = made.placeholder, made.text.ids
    block = lambda *words: [ids.bos, *words, ids.eos]  # noqa: E731
    assert made.row("5,7", 2) == [place, place, *block(5, 7), ids.bos]
    assert made.row("5<image>7,9<image>", 2) == [*block(5), place, *block(7, 9), place, ids.bos]
    assert made.row("<image><image>5,7", 2) == made.row("5,7", 2)
    assert made.row("5,7") == [*block(5, 7), ids.bos]
    for text in ("", "<image> "):
        with pytest.raises(flashu.PromptError, match="empty"):
            made.row(text, text.count("<image>"))
    with pytest.raises(flashu.PromptError, match="one place for each"):
        made.row("5<image>", 2)


def test_where_a_picture_stands_matters() -> None:
    opened = engine()
    [before], [after] = (opened.answer([["picture"]], [text], max_new_tokens=4) for text in ("5,7", "5,7<image>"))
    [named] = opened.answer([["picture"]], ["<image>5,7"], max_new_tokens=4)
    assert named.tokens == before.tokens
    row = opened.processor.row("5,7<image>", 1)
    assert after.tokens == opened.respond([AnswerRequest("", ("picture",), 4, row)])[0].tokens
