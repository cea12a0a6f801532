"""Words to token ids and back. BAGEL has no chat roles: a text is a block of its own, [bos, words, eos]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from flashu.errors import CheckpointError
from flashu.models.sizes import Checked
from flashu.models.words import checked, encode

QWEN_SPECIALS = {
    "bos": "<|im_start|>",
    "eos": "<|im_end|>",
    "boi": "<|vision_start|>",
    "eoi": "<|vision_end|>",
    "img_pad": "<|image_pad|>",
    "pad": "<|endoftext|>",
}


@dataclass(frozen=True)
class SpecialIds(Checked):
    """``bos``, ``eos``: around text. ``boi``, ``eoi``: around a picture. ``img_pad``: a picture's place in a row of ids
    that comes from outside."""

    least = 0

    bos: int
    eos: int
    boi: int
    eoi: int
    img_pad: int
    pad: int


@dataclass(frozen=True)
class Thinking(Checked):
    """The system prompts under which the model thinks first: before an image, before an answer."""

    draw: str = (
        "You should first think about the planning process in the mind and then generate the image. \n"
        "The planning process is enclosed within <think> </think> tags, i.e. "
        "<think> planning process here </think> image here"
    )
    answer: str = (
        "You should first think about the reasoning process in the mind and then provide the user with the answer. \n"
        "The reasoning process is enclosed within <think> </think> tags, i.e. "
        "<think> reasoning process here </think> answer here"
    )


@dataclass(frozen=True)
class Text:
    """A tokenizer with what the model expects around the words. Limits count tokens; ``thinking`` None: the model was
    not trained to think."""

    tokenizer: Tokenizer
    ids: SpecialIds
    thinking: Thinking | None = None
    max_text: int = 4096

    @classmethod
    def qwen(cls, tokenizer: Tokenizer) -> Text:
        """Text of an official checkpoint: Qwen2.5's tokenizer."""
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        if lacking := [token for token in QWEN_SPECIALS.values() if token not in vocabulary]:
            raise CheckpointError(
                f"this tokenizer has no {', '.join(lacking)}: it is not Qwen2.5's. Put the tokenizer.json that belongs "
                "to the checkpoint into its folder."
            )
        return cls(tokenizer, SpecialIds(**{n: vocabulary[t] for n, t in QWEN_SPECIALS.items()}), Thinking())

    def encode(self, text: str) -> list[int]:
        return encode(self.tokenizer, text)

    def decode(self, ids: Sequence[int]) -> str:
        """Words of the ids; special tokens are left out."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def block(self, kind: str, text: str) -> list[int]:
        """[bos, words, eos]; `PromptError` for a blank or overlong text. ``kind``: what to call it."""
        return [self.ids.bos, *checked(kind, text, self.max_text, self.encode), self.ids.eos]
