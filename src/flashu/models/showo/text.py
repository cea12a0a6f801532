"""Words to token ids and back, in Show-o's rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import AddedToken, Tokenizer

from flashu.errors import CheckpointError, PromptError
from flashu.models.sizes import Checked
from flashu.models.words import encode

PAD = "[PAD]"
ADDED = (PAD, "<|soi|>", "<|eoi|>", "<|sov|>", "<|eov|>", "<|t2i|>", "<|mmu|>", "<|t2v|>", "<|v2v|>", "<|lvg|>")
"""What Show-o adds to a tokenizer, in this order."""
ENDS = "<|endoftext|>"
"""Phi-1.5's first and last token: the same."""


@dataclass(frozen=True)
class SpecialIds(Checked):
    """``sot``, ``eot``: around text. ``soi``, ``eoi``: around an image. ``t2i``, ``mmu``: what a row is for."""

    least = -1  # of marks that are not known, where a program writes its own rows

    pad: int
    soi: int
    eoi: int
    t2i: int
    mmu: int
    sot: int
    eot: int

    @classmethod
    def behind(cls, text_tokens: int, sot: int, eot: int) -> SpecialIds:
        """Behind a tokenizer of so many tokens, two of which mark text."""
        at = {name: text_tokens + n for n, name in enumerate(ADDED)}
        return cls(at[PAD], at["<|soi|>"], at["<|eoi|>"], at["<|t2i|>"], at["<|mmu|>"], sot, eot)


@dataclass(frozen=True)
class ChatTemplate(Checked):
    """The words around a question. ``system``: before a picture that is shown by features."""

    system: str = (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    )
    user: str = "USER: \n"
    assistant: str = " ASSISTANT:"


@dataclass(frozen=True)
class Text:
    """A tokenizer with what the model expects around the words. ``max_text``: most tokens of a prompt with its two
    marks; ``max_question``: of a question."""

    tokenizer: Tokenizer
    ids: SpecialIds
    chat: ChatTemplate
    max_text: int
    max_question: int = 1024

    @classmethod
    def phi(cls, tokenizer: Tokenizer, text_tokens: int, max_text: int) -> Text:
        """Text of an official checkpoint: Phi-1.5's tokenizer with the tokens that Show-o adds to it."""
        tokenizer.add_special_tokens([AddedToken(PAD, special=True, normalized=False)])
        tokenizer.add_tokens(list(ADDED[1:]))
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        mark = vocabulary.get(ENDS, -1)
        if mark < 0 or any(vocabulary[name] != text_tokens + n for n, name in enumerate(ADDED)):
            raise CheckpointError(
                f"this tokenizer is not Phi-1.5's of {text_tokens} tokens: put the tokenizer.json of microsoft/phi-1_5 "
                "into the checkpoint folder"
            )
        return cls(tokenizer, SpecialIds.behind(text_tokens, mark, mark), ChatTemplate(), max_text)

    def encode(self, text: str) -> list[int]:
        return encode(self.tokenizer, text)

    def decode(self, ids: Sequence[int]) -> str:
        """Words of the ids; special tokens, and codes that a model may say, are left out."""
        return self.tokenizer.decode([token for token in ids if token < self.ids.pad], skip_special_tokens=True)

    def prompt(self, text: str) -> list[int]:
        """[t2i, sot, words, eot]; a blank or overlong prompt raises ``PromptError`` (nothing is cut off silently)."""
        return [self.ids.t2i, self.ids.sot, *self._checked("prompt", text, self.max_text - 2), self.ids.eot]

    def null_prompt(self) -> list[int]:
        """The unconditional prompt, [t2i, sot, eot]."""
        return [self.ids.t2i, self.ids.sot, self.ids.eot]

    def question(self, text: str) -> list[int]:
        """[sot, user, words, assistant], what follows a picture that is shown by its codes, or stands alone."""
        self._checked("question", text, self.max_question)
        return [self.ids.sot, *self._around(self.chat.user, text)]

    def system(self) -> list[int]:
        """[mmu, system, soi], what stands before the features of a picture."""
        return [self.ids.mmu, *self.encode(self.chat.system), self.ids.soi]

    def conversation(self, text: str) -> list[int]:
        """[user, words, assistant], what follows the features of a picture and eoi."""
        self._checked("question", text, self.max_question)
        return self._around(self.chat.user.rstrip("\n"), text)

    def _around(self, user: str, text: str) -> list[int]:
        """Encoded as a whole, as the original does it."""
        return self.tokenizer.encode(user + text + self.chat.assistant, add_special_tokens=False).ids

    def _checked(self, kind: str, text: str, limit: int) -> list[int]:
        if not isinstance(text, str):
            raise PromptError(f"a {kind} must be a string, not {type(text).__name__}")
        if not text.strip():
            raise PromptError(f"the {kind} is empty: write at least one word")
        try:
            text.encode()
        except UnicodeEncodeError as e:
            raise PromptError(f"the {kind} is not valid Unicode (character {e.start}): remove that character") from e
        ids = self.encode(text)
        if not ids:
            raise PromptError(f"the {kind} {text!r} has no token the model knows: use other words")
        if len(ids) > limit:
            raise PromptError(f"the {kind} has {len(ids)} tokens, at most {limit} are possible: shorten it")
        return ids
