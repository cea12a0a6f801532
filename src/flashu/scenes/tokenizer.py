"""The word-level tokenizer: a closed vocabulary behind a normaliser that knows plurals and common synonyms.

Cells are two tokens, row then column ("2c" -> "2", "##c"): relations compare rows or columns, and the column
letters cannot be taken for the article "a".
"""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from . import captions, edits, questions
from .world import COLUMNS, NUMBERS, RELATIONS, ROWS, SCENES, World

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
    **{rf"\b{n}\b": word for n, word in enumerate(NUMBERS)},
    r"\b(diamonds|rhombus(es)?|rhombi)\b": "diamond",
    r"\b(rings|donuts?|doughnuts?|hoops?)\b": "ring",
    r"^\s*describe( the| this)?( picture)?\s*\.?\s*$": "describe the picture.",  # the one wording it was trained on
    r"\b(erase|get rid of)\b": "remove",
    r"\b(shift)\b": "move",
    r"\b(insert)\b": "add",
    r"^\s*describe (every|all|each)( the)? cells?\s*\.?\s*$": "describe every cell.",
}


def _words(world: World) -> list[str]:
    templates = [t for group in (*captions.TEMPLATES.values(), *questions.PHRASES.values()) for t in group]
    loose = "the and , so none versus yes no object describe picture"
    words = " ".join([*templates, *world.numbers, *world.shapes, *world.colours, *RELATIONS, loose]).split()
    words = [w.rstrip("?.") for w in words if "{" not in w] + [".", "?"]
    return sorted({w for w in words if w and w != "photo"})


def edit_words(known: list[str]) -> list[str]:
    """The words of instructions and of the long description that are not among the known."""
    templates = " ".join(t for group in edits.TEMPLATES.values() for t in group)
    return sorted({w for w in f"{templates} and every cell".split() if "{" not in w} - {*known})


def build(world: World = SCENES, instructions: bool = False) -> Tokenizer:
    """Builds the tokenizer; its vocabulary follows from the captions, the questions and the world. ``instructions``:
    also, behind those, the words of edits and of the long description."""
    words, side = _words(world), world.side
    words += edit_words(words) if instructions else []
    vocabulary = [*SPECIALS, *ROWS[:side], *("##" + c for c in COLUMNS[:side]), *words]
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(vocabulary)}, unk_token=UNK))
    known = {pattern: word for pattern, word in _SYNONYMS.items() if {w.rstrip(".") for w in word.split()} <= {*words}}
    replacements = [normalizers.Replace(Regex(pattern), word) for pattern, word in known.items()]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *replacements])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    tokenizer.add_special_tokens(list(SPECIALS))
    return tokenizer
