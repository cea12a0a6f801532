"""Words that a small model does not know are said."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from flashu.models.words import encode


def tokenizer(unknown: str | None) -> Tokenizer:
    made = Tokenizer(models.WordLevel({"[?]": 0, "red": 1, "circle": 2}, unk_token=unknown))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


def test_a_warning_names_them_and_what_is_known(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):  # and once is enough
        assert encode(tokenizer("[?]"), "shy red yak") == [0, 1, 0]
    assert caplog.messages == ["this model does not know 'shy', 'yak'; it knows circle, red"]


@pytest.mark.parametrize("unknown", ["[?]", None])
def test_no_warning_without_any(unknown: str | None, caplog: pytest.LogCaptureFixture) -> None:
    assert encode(tokenizer(unknown), "red circle") == [1, 2]
    assert not caplog.messages
