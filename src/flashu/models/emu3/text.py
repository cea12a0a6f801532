"""Words, sizes and codes to token ids, in Emu3's layouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer
from torch import Tensor

from flashu.errors import PromptError
from flashu.models.emu3.config import Ids
from flashu.models.sizes import Checked
from flashu.models.words import IMAGE, around_images, encode


@dataclass(frozen=True)
class Template(Checked):
    """The words around what a user says. ``positive`` follows every prompt; ``negative`` is the prompt of the guidance
    branch. ``size``: how the rows and columns of an image are written, "" = not at all."""

    system: str = "You are a helpful assistant. USER: "
    assistant: str = ". ASSISTANT:"
    positive: str = " masterpiece, film grained, best quality."
    negative: str = (
        "lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, cropped, worst "
        "quality, low quality, normal quality, jpeg artifacts, signature, watermark, username, blurry."
    )
    size: str = "{height}*{width}"


@dataclass(frozen=True)
class Text:
    """A tokenizer with what the model expects around the words. Limits count tokens."""

    tokenizer: Tokenizer
    ids: Ids
    template: Template
    max_text: int
    max_question: int = 2048

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Words of the ids; special tokens are left out."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    # -- drawing -----------------------------------------------------------------------------------------------
    def opening(self, height: int, width: int) -> list[int]:
        """What stands before the codes of an image: its mark and size, in codes."""
        return [self.ids.boi, *self.encode(self.template.size.format(height=height, width=width)), self.ids.img]

    def prompt(self, text: str) -> list[int]:
        """[bos, words]; a blank or overlong prompt raises ``PromptError`` (nothing is cut off silently)."""
        self._check("prompt", text, self.max_text)
        return [self.ids.bos, *self.encode(text + self.template.positive)]

    def negative(self) -> list[int]:
        return [self.ids.bos, *self.encode(self.template.negative)]

    def image(self, codes: Tensor) -> list[int]:
        """The whole block of an image [h, w]."""
        height, width = codes.shape
        rows = [token for row in (codes + self.ids.first).tolist() for token in (*row, self.ids.eol)]
        return [*self.opening(height, width), *rows, self.ids.eof, self.ids.eoi]

    # -- seeing ------------------------------------------------------------------------------------------------
    def before(self) -> list[int]:
        """[bos, system], which stands before the images of a question."""
        return [self.ids.bos, *self.encode(self.template.system)]

    def question(self, text: str) -> list[int]:
        """The question and what follows it."""
        self._check("question", text, self.max_question)
        return self.encode(text + self.template.assistant)

    def question_parts(self, text: str, images: int) -> list[list[int]]:
        """Ids before, between and after the images of a question; of one about none, the whole row."""
        self._check("question", text.replace(IMAGE, " "), self.max_question)
        *before, last = around_images(text, images)
        parts = [self.encode(words) if words.strip() else [] for words in before]
        parts.append(self.encode(last + self.template.assistant))
        return [[*self.before(), *parts[0]], *parts[1:]]

    # -- inside ------------------------------------------------------------------------------------------------
    def _check(self, kind: str, text: str, limit: int) -> None:
        if not isinstance(text, str):
            raise PromptError(f"a {kind} must be a string, not {type(text).__name__}")
        if not text.strip():
            raise PromptError(f"the {kind} is empty: write at least one word")
        try:
            text.encode()
        except UnicodeEncodeError as e:
            raise PromptError(f"the {kind} is not valid Unicode (character {e.start}): remove that character") from e
        count = len(encode(self.tokenizer, text))
        if not count:
            raise PromptError(f"the {kind} {text!r} has no token the model knows: use other words")
        if count > limit:
            raise PromptError(f"the {kind} has {count} tokens, at most {limit} are possible: shorten it")
