"""The recorded tiny model with a tokenizer of its ids: word "w7" is token 7, digits and "*" are where the recording has
them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

from flashu.models.defaults import GenerationDefaults
from flashu.models.emu3.processor import Processor
from flashu.models.emu3.text import Template, Text
from tests.models.emu3.golden.recorded import config, sizes

WORDS = 140  # from here on: digits
STAR = 159
TEMPLATE = Template(system="", assistant="", positive="", negative="w1 w2")


def tokenizer() -> Tokenizer:
    vocabulary = {f"w{n}": n for n in range(WORDS)} | {str(n): WORDS + n for n in range(STAR - WORDS)} | {"*": STAR}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"w\d+|\d+|\*|[^\s\d*]+"), "removed", invert=True)
    special = sorted(sizes()["vocabulary_map_non_visual"].items(), key=lambda item: item[1])
    assert len(vocabulary) == special[0][1]
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name, _ in special])
    assert all(made.token_to_id(name) == token for name, token in special)
    return made


def text_of(ids: Sequence[int]) -> str:
    """The words of the ids, marks of images and the beginning of the row left out."""
    known = config().ids
    return " ".join(f"w{n}" for n in ids[1 : ids.index(known.boi) if known.boi in ids else None])


def text() -> Text:
    return Text(tokenizer(), config().ids, TEMPLATE, max_text=40)


def processor(codec: Any) -> Processor:
    defaults = GenerationDefaults(24, 3.0, 1.0, 32, 48, max_new_tokens=12)
    return Processor(text(), codec, defaults, area=(16 * 16, 64 * 64), top_k=24)
