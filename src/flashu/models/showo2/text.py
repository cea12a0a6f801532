"""Words to token ids and back, in Show-o2's layouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import AddedToken, Tokenizer

from flashu.errors import CheckpointError, PromptError
from flashu.models.sizes import Checked
from flashu.models.words import IMAGE, around_images, checked, encode

ADDED_BY_SHOWO2 = ("[PAD]", "<image>", "<|vid_start|>", "<|vid_end|>")  # in this order, after Qwen2.5's own
QWEN_SPECIALS = {
    "bos": "<|im_start|>",
    "eos": "<|im_end|>",
    "boi": "<|vision_start|>",
    "eoi": "<|vision_end|>",
    "img_pad": "<|image_pad|>",
    "pad": "[PAD]",
}


@dataclass(frozen=True)
class SpecialIds(Checked):
    least = 0

    bos: int
    eos: int
    boi: int
    eoi: int
    img_pad: int
    pad: int


@dataclass(frozen=True)
class ChatTemplate(Checked):
    """The words around an image and its question. The question is not closed, as in the original."""

    system: str = "system\nYou are a helpful assistant.<|im_end|>"
    user: str = "\n<|im_start|>user\n"
    assistant: str = "\n<|im_start|>assistant\n"


@dataclass(frozen=True)
class Text:
    """A tokenizer with what the model expects around the words. Limits count tokens."""

    tokenizer: Tokenizer
    ids: SpecialIds
    chat: ChatTemplate
    max_text: int
    max_question: int = 2048

    @classmethod
    def qwen(cls, tokenizer: Tokenizer, max_text: int) -> Text:
        """Text of an official checkpoint: Qwen2.5's tokenizer with the four tokens Show-o2 adds to it."""
        tokenizer.add_special_tokens([AddedToken(ADDED_BY_SHOWO2[0], special=True, normalized=False)])
        tokenizer.add_tokens(list(ADDED_BY_SHOWO2[1:]))
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        if lacking := [token for token in QWEN_SPECIALS.values() if token not in vocabulary]:
            raise CheckpointError(
                f"this tokenizer has no {', '.join(lacking)}: it is not Qwen2.5's. "
                "Put the tokenizer.json of the Qwen2.5 model named in config.json into the checkpoint folder."
            )
        ids = SpecialIds(**{name: vocabulary[token] for name, token in QWEN_SPECIALS.items()})
        return cls(tokenizer, ids, ChatTemplate(), max_text)

    def encode(self, text: str) -> list[int]:
        return encode(self.tokenizer, text)

    def decode(self, ids: Sequence[int]) -> str:
        """Words of the ids; special tokens are left out."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def prompt(self, text: str) -> list[int]:
        """[bos, words, boi]; a blank or overlong prompt raises ``PromptError`` (nothing is cut off silently)."""
        return [self.ids.bos, *self._checked("prompt", text, self.max_text), self.ids.boi]

    def before_images(self, texts: Sequence[str], prompt: str) -> list[list[int]]:
        """Ids before each image of a row that holds several: [bos, words, boi], then [eoi, words, boi] each; the last
        stands before the image to draw. Only the prompt must have words."""
        every = [
            [*(self._checked("text before an image", text, self.max_text) if text else ()), self.ids.boi]
            for text in texts
        ]
        every.append(self.prompt(prompt)[1:])
        return [[self.ids.eoi if n else self.ids.bos, *ids] for n, ids in enumerate(every)]

    def null_prompt(self) -> list[int]:
        """The unconditional prompt, [bos, boi]."""
        return [self.ids.bos, self.ids.boi]

    def question(self, text: str) -> tuple[list[int], list[int]]:
        """Ids before the image, [bos, system, user, boi], and after it, [eoi, question, assistant].

        Each part is encoded apart, as the original does.
        """
        words = self._checked("question", text, self.max_question)
        before = [self.ids.bos, *self.encode(self.chat.system), *self.encode(self.chat.user), self.ids.boi]
        return before, [self.ids.eoi, *words, *self.encode(self.chat.assistant)]

    def question_parts(self, text: str, images: int) -> list[list[int]]:
        """Ids before, between and after the images of a question about several, each image framed as a single one.
        Words before and between them are encoded apart, like the other parts."""
        if IMAGE not in text:
            before, after = self.question(text)
            return [before, *[[self.ids.eoi, self.ids.boi]] * (images - 1), after]
        first, *between, last = around_images(text, images)
        self._checked("question", " ".join((first, *between, last)), self.max_question)
        system, user = self.encode(self.chat.system), self.encode(self.chat.user)
        parts = [[self.ids.bos, *system, *user, *self._words(first), self.ids.boi]]
        parts += [[self.ids.eoi, *self._words(words), self.ids.boi] for words in between]
        return [*parts, [self.ids.eoi, *self._words(last), *self.encode(self.chat.assistant)]]

    def _words(self, text: str) -> list[int]:
        return self.encode(text) if text.strip() else []

    def message(self, text: str) -> list[int]:
        """Ids of a message without an image: [bos, system, user, words, assistant]."""
        words = self._checked("message", text, self.max_question)
        around = (self.encode(part) for part in (self.chat.system, self.chat.user))
        return [self.ids.bos, *(token for part in around for token in part), *words, *self.encode(self.chat.assistant)]

    def padded_row(self, prompt_ids: Sequence[int], image_tokens: int, length: int) -> list[int]:
        """The original's row: prompt, time and image places, eoi, eos, then padding up to ``length``."""
        row = [*prompt_ids, *[self.ids.img_pad] * (image_tokens + 1), self.ids.eoi, self.ids.eos]
        if len(row) > length:
            raise PromptError(f"{len(row)} tokens do not fit a row of {length}: shorten the prompt or the image")
        return row + [self.ids.pad] * (length - len(row))

    def _checked(self, kind: str, text: str, limit: int) -> list[int]:
        return checked(kind, text, limit, self.encode)
