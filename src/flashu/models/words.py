"""Encoding text: what a closed vocabulary lacks is said; where a text has pictures."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache

from tokenizers import Tokenizer

from flashu.errors import PromptError

IMAGE = "<image>"
"""In a question's text: the place of its next picture. Without any, pictures stand before the text."""
log = logging.getLogger("flashu")
SHOWN = 80
"""Words of a vocabulary that a warning lists."""


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text without special tokens; a warning names words that the vocabulary lacks, and some that it has."""
    encoding = tokenizer.encode(text, add_special_tokens=False)
    unknown = getattr(tokenizer.model, "unk_token", None)
    if unknown is None or (id_ := tokenizer.token_to_id(unknown)) not in encoding.ids:
        return encoding.ids
    lacking = [text[slice(*at)] for at, token in zip(encoding.offsets, encoding.ids, strict=True) if token == id_]
    vocabulary = sorted(word for word in tokenizer.get_vocab() if word.isalpha())
    known = ", ".join(vocabulary[:SHOWN]) + (", ..." if len(vocabulary) > SHOWN else "")
    _warn(", ".join(map(repr, lacking)), known)
    return encoding.ids


@cache
def _warn(lacking: str, known: str) -> None:
    """Once for the same words: a text is encoded again for every request."""
    log.warning("this model does not know %s; it knows %s", lacking, known)


def checked(kind: str, text: object, limit: int, encode: Callable[[str], list[int]]) -> list[int]:
    """Ids of what a user wrote; `PromptError` if it is blank, no text, or more than ``limit`` tokens (nothing is cut
    off silently). ``kind``: what to call it."""
    if not isinstance(text, str):
        raise PromptError(f"a {kind} must be a string, not {type(text).__name__}")
    if not text.strip():
        raise PromptError(f"the {kind} is empty: write at least one word")
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise PromptError(f"the {kind} is not valid Unicode (character {e.start}): remove that character") from e
    ids = encode(text)
    if not ids:
        raise PromptError(f"the {kind} {text!r} has no token the model knows: use other words")
    if len(ids) > limit:
        raise PromptError(f"the {kind} has {len(ids)} tokens, at most {limit} are possible: shorten it")
    return ids


def around_images(text: str, images: int) -> list[str]:
    """The texts before, between and after so many pictures; `PromptError` if the text has places for others."""
    places = text.count(IMAGE)
    if places not in (0, images):
        raise PromptError(f"the text has {places} {IMAGE} for {images} pictures: give one place for each, or none")
    return text.split(IMAGE) if places else [*[""] * images, text]
