"""Words to token ids, in Janus-Pro's layouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from flashu.models.janus.config import Ids
from flashu.models.words import IMAGE, around_images, checked, encode


@dataclass(frozen=True)
class Template:
    """The words around what a user says."""

    system: str = (
        "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
        "provides, and assist the user with a variety of tasks using natural language.\n\n"
    )
    user: str = "<|User|>: "
    assistant: str = "\n\n<|Assistant|>:"


@dataclass(frozen=True)
class Text:
    """A tokenizer with what the model expects around the words, as the checkpoints' chat template writes it: blanks at
    the ends are left out, pictures stand in lines of their own. Limits count tokens."""

    tokenizer: Tokenizer
    ids: Ids
    template: Template = Template()
    max_text: int = 2048

    def encode(self, text: str) -> list[int]:
        return encode(self.tokenizer, text)

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def prompt(self, text: str) -> list[int]:
        """[bos, words, boi]."""
        checked("prompt", text, self.max_text, self.encode)
        words = self.template.user + text.strip() + self.template.assistant
        return [self.ids.bos, *self.encode(words), self.ids.boi]

    def negative(self, row: Sequence[int]) -> list[int]:
        """The guidance branch's row of a prompt's: padding for every word, which is seen as words are."""
        return [token if token in (self.ids.bos, self.ids.boi) else self.ids.pad for token in row]

    def question_parts(self, text: str, images: int) -> list[list[int]]:
        """Ids before, between and after the images of a question, their marks included; about none, the whole row."""
        checked("question", text.replace(IMAGE, " "), self.max_text, self.encode)
        parts = around_images(text.strip(), images)
        if images and IMAGE not in text:
            parts = ["", *["\n\n"] * (images - 1), "\n" + parts[-1]]
        parts[0] = self.template.system + self.template.user + parts[0]
        parts[-1] += self.template.assistant
        ids = [self.encode(part) if part else [] for part in parts]
        ids[0] = [self.ids.bos, *ids[0]]
        opened = [[*part, self.ids.boi] for part in ids[:-1]] + ids[-1:]
        return [part if n == 0 else [self.ids.eoi, *part] for n, part in enumerate(opened)]
