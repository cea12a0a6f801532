"""The word-level tokenizer: a closed vocabulary behind a normaliser that knows plurals and common synonyms.

Cells are two tokens, row then column ("2c" -> "2", "##c"): relations compare rows or columns, and the column
letters cannot be taken for the article "a".
"""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from . import captions, questions
from .world import COLOURS, COLUMNS, RELATIONS, ROWS, SHAPES

PAD, BOS, EOS, BOI, EOI, IMG_PAD, UNK, ANSWER = SPECIALS = (
    "[PAD]", "<bos>", "<eos>", "<boi>", "<eoi>", "<img_pad>", "<unk>", "<answer>",
)  # fmt: skip

_SYNONYMS = {
    r"\bcolors?\b|\bcolours\b": "colour",
    r"\b(colored|coloured) ": "",
    r"\b(objects|things?|items?|shapes|figures?)\b": "object",
    r"\b(circles|dis[ck]s?|balls?|dots?)\b": "circle",
    r"\b(squares|box|boxes)\b": "square",
    r"\btriangles\b": "triangle",
    r"\b(crosses|plus signs?|pluses|plus)\b": "cross",
    r"\b(violet)\b": "purple",
    r"\b(pictures|photos?|photograph|images?|drawing|scene)\b": "picture",
    r"\ban\b": "a",
    r"\b(on|to|at) the left( side)? of\b": "left of",
    r"\b(on|to|at) the right( side)? of\b": "right of",
    r"\b(underneath|beneath|under)\b": "below",
    r"\bover\b": "above",
    r"\bless\b": "fewer",
    r"\b(greater|bigger|higher)\b": "larger",
    r"\bthere's\b": "there is",
    r"\b0\b": "zero",
    r"\b1\b": "one",
    r"\b2\b": "two",
    r"\b3\b": "three",
    r"\b4\b": "four",
    r"^\s*describe( the| this)?( picture)?\s*\.?\s*$": "describe the picture.",  # the one wording it was trained on
}


def _words() -> list[str]:
    templates = [t for group in (*captions.TEMPLATES.values(), *questions.PHRASES.values()) for t in group]
    loose = "the and , so none versus yes no object describe picture"
    words = " ".join([*templates, *captions.NUMBERS, *SHAPES, *COLOURS, *RELATIONS, loose]).split()
    words = [w.rstrip("?.") for w in words if "{" not in w] + [".", "?"]
    return sorted({w for w in words if w and w != "photo"})


def build() -> Tokenizer:
    """Builds the tokenizer; its vocabulary follows from the captions, the questions and the board."""
    vocabulary = [*SPECIALS, *ROWS, *("##" + c for c in COLUMNS), *_words()]
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(vocabulary)}, unk_token=UNK))
    replacements = [normalizers.Replace(Regex(pattern), word) for pattern, word in _SYNONYMS.items()]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *replacements])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    tokenizer.add_special_tokens(list(SPECIALS))
    return tokenizer
