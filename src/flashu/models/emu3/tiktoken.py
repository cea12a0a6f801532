"""The authors' vocabulary file (byte-pair ranks) as a tokenizer."""

from __future__ import annotations

import base64
import binascii
from itertools import pairwise
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from flashu.errors import CheckpointError
from flashu.models.emu3.config import Ids

FILE = "emu3.tiktoken"
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How text is split before its bytes are merged."""
EXTRAS = 205


def from_tiktoken(file: Path, ids: Ids) -> Tokenizer:
    """The tokenizer of a file of base64 tokens and ranks. Tokens of codes are left out: they are never text."""
    ranks = _ranks(file)
    letters = _letters()

    def spelled(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    halves = [_halves(token, ranks) for token in ranks if len(token) > 1]
    merges = [(spelled(a), spelled(b)) for a, b in halves]
    vocabulary = {spelled(token): rank for token, rank in ranks.items()}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{n}|>" for n in range(EXTRAS))]
    names += ["<|image token|>", "<|image start|>", "<|image end|>"]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    if tokenizer.token_to_id("<|endoftext|>") != ids.pad:
        raise CheckpointError(f"{file}: holds {len(ranks)} tokens where config.json says {ids.pad}")
    return tokenizer


def _ranks(file: Path) -> dict[bytes, int]:
    try:
        pairs = (line.split() for line in file.read_bytes().splitlines() if line)
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
    except (OSError, ValueError, binascii.Error) as e:
        raise CheckpointError(f"{file}: not a file of tokens and ranks ({e}). Download it again.") from e
    if sorted(ranks.values()) != list(range(len(ranks))) or any(bytes([b]) not in ranks for b in range(256)):
        raise CheckpointError(f"{file}: is not complete. Download it again.")
    return dict(sorted(ranks.items(), key=lambda item: item[1]))


def _halves(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two tokens that are merged into this one: what merging its bytes in order of rank leaves before the last."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        joined = [ranks.get(a + b, len(ranks)) for a, b in pairwise(parts)]
        best = joined.index(min(joined))
        if joined[best] >= ranks[token]:
            break
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    if len(parts) != 2:
        raise CheckpointError(f"the token {token!r} is no merge of two others: the vocabulary is not byte-pair encoded")
    return parts[0], parts[1]


def _letters() -> dict[int, str]:
    """A printable character for each byte, as byte-level tokenizers have it."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(rest)}
