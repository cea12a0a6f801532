"""Encoding text with a closed vocabulary: words outside it are said."""

from __future__ import annotations

import warnings

from tokenizers import Tokenizer

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
    warnings.warn(f"this model does not know {', '.join(map(repr, lacking))}; it knows {known}", stacklevel=2)
    return encoding.ids
