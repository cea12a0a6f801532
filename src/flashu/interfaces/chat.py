"""A transformers-compatible API for questions: a processor makes tensors, `generate` continues them.

    inputs = processor(images=image, text="how many circles are there?", return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=8)
    print(processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :])[0])

transformers itself is not needed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from flashu.errors import FlashUError, ImageError, PromptError
from flashu.inference.actions import AnswerRequest, Visual
from flashu.inference.arguments import Shown
from flashu.inference.engine import Engine
from flashu.interfaces.pipeline import Pipeline, revised
from flashu.models.protocol import Processor
from flashu.models.registry import family_of, resolve
from flashu.models.video import Video
from flashu.runtime.sampling import drawn_seed


class ChatInputs(dict[str, Tensor]):
    """What a `ChatProcessor` returns: ``input_ids`` and ``attention_mask`` [B, S], ``pixel_values`` [N, 3, H, W], and
    with videos ``frames``: of each placeholder in order, the number of pictures it stands for, 0 for an image."""

    def to(self, *args: Any, **kwargs: Any) -> ChatInputs:
        """The same tensors elsewhere."""
        return ChatInputs({name: tensor.to(*args, **kwargs) for name, tensor in self.items()})


class ChatProcessor:
    """Text and pictures to tensors, and ids back to text."""

    def __init__(self, processor: Processor) -> None:
        self.processor = processor

    @classmethod
    def from_pretrained(
        cls, source: str | os.PathLike[str], *, revision: str | None = None, token: str | None = None
    ) -> ChatProcessor:
        """The processor of a known model's name, a folder or a hub id; no weights are read. ``revision``, ``token``:
        as of `Pipeline.from_pretrained`."""
        checkpoint = resolve(revised(source, revision, token))
        family = family_of(checkpoint)
        if family.processor is None:
            raise FlashUError(f"{family.title} has no processor that can be loaded alone: take its model's")
        return cls(family.processor(checkpoint))

    def __call__(
        self,
        images: Visual | Sequence[Shown] | None = None,
        text: str | Sequence[str] | None = None,
        return_tensors: str = "pt",
    ) -> ChatInputs:
        """Tensors of questions about images, or of messages if there are no ``images``.

        For one text, ``images`` is a picture, a `Video` or a list of those it is about; for a list of texts, a list
        with one or a list of them for each. The chat template is put around each text; one placeholder in
        ``input_ids`` stands for each image or video. Rows are padded on the left.
        """
        if return_tensors != "pt":
            raise FlashUError(f'there are only PyTorch tensors here: return_tensors="pt", not {return_tensors!r}')
        if not text:
            raise PromptError("nothing to answer: give a text or a list of texts")
        texts = [text] if isinstance(text, str) else list(text)
        groups: list[list[Visual]] = [[] for _ in texts] if images is None else _groups(images, text)
        rows = [self.processor.row(one, len(group)) for one, group in zip(texts, groups, strict=True)]
        inputs = ChatInputs()
        if images is not None:
            every = [seen for group in groups for seen in group]
            frames = [p for seen in every for p in self.processor.frames(seen)]
            if len({p.shape[-2:] for p in frames}) > 1:
                raise ImageError("this model shows pictures in their own sizes: give those of one size at a time here")
            inputs["pixel_values"] = torch.cat(frames)
            if any(isinstance(seen, Video) for seen in every):
                inputs["frames"] = torch.tensor([len(seen) if isinstance(seen, Video) else 0 for seen in every])
        longest, pad = max(map(len, rows)), self.processor.pad
        inputs["input_ids"] = torch.tensor([[pad] * (longest - len(row)) + row for row in rows])
        inputs["attention_mask"] = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        return inputs

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        *,
        add_generation_prompt: bool = True,
        tokenize: bool = True,
        return_dict: bool = True,
        return_tensors: str = "pt",
    ) -> ChatInputs:
        """Tensors of a conversation in transformers' form, or of several: one message of the user each, whose content
        is a text or a list of ``{"type": "image", "image": ...}`` and ``{"type": "text", "text": ...}``. These models
        answer one question at a time: more turns, other roles, and text alone (``tokenize=False``) are refused."""
        if not (add_generation_prompt and tokenize and return_dict):
            raise FlashUError("only tensors to answer are made here: leave tokenize, return_dict and the prompt on")
        if not conversation:
            raise PromptError("nothing to answer: give a message")
        several: Any = [conversation] if isinstance(conversation[0], Mapping) else conversation
        asked = [_asked(one) for one in several]
        images = [shown for shown, _ in asked]
        if any(images) and not all(images):
            raise ImageError("questions about images and messages without any are separate calls")
        return self([*images] if any(images) else None, [text for _, text in asked], return_tensors)

    def decode(self, ids: Tensor | Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of one row of ids."""
        row = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        return self.processor.decode(row, special=not skip_special_tokens)

    def batch_decode(self, sequences: Tensor | Sequence[Sequence[int]], skip_special_tokens: bool = True) -> list[str]:
        """The text of each row of ids."""
        rows = sequences.tolist() if isinstance(sequences, Tensor) else [list(row) for row in sequences]
        return [self.decode(row, skip_special_tokens) for row in rows]


class ChatModel:
    """An engine that continues the tensors of a `ChatProcessor`."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str], **settings: Any) -> ChatModel:
        """The model of a known name, a folder or a hub id; settings as of `Pipeline.from_pretrained`."""
        return cls(Pipeline.from_pretrained(source, **settings).engine)

    @property
    def device(self) -> torch.device:
        return self.engine.model.device

    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        frames: Tensor | None = None,
        *,
        max_new_tokens: int | None = None,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The rows with their answers, [B, S + new]; rows that end early are filled up with the end token.

        Greedy unless ``do_sample``, which ``temperature``, ``top_k`` and ``top_p`` then shape; its seed is drawn from
        ``generator`` (None: torch's global one), and row i samples with seed + i.
        """
        given = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        rows = [row[on.bool()].tolist() for row, on in zip(input_ids, given, strict=True)]
        if not rows:
            raise PromptError("nothing to answer: give at least one row of ids")
        places = [row.count(self.engine.processor.placeholder) for row in rows]
        shown = iter(_visuals(pixel_values, frames, sum(places)))
        requests = [
            AnswerRequest("", tuple(islice(shown, count)), max_new_tokens, row)
            for row, count in zip(rows, places, strict=True)
        ]
        answers = self.engine.respond(
            requests,
            temperature=temperature if do_sample else 0.0,
            top_k=top_k,
            top_p=top_p,
            seed=drawn_seed(generator) if do_sample else 0,
        )
        longest, stop = max(len(answer.tokens) for answer in answers), self.engine.processor.stop
        new = [answer.tokens + [stop] * (longest - len(answer.tokens)) for answer in answers]
        return torch.cat((input_ids, torch.tensor(new, dtype=input_ids.dtype, device=input_ids.device)), dim=1)


def _asked(conversation: Sequence[Mapping[str, Any]]) -> tuple[list[Visual], str]:
    """The images and the text of a conversation of one message."""
    if len(conversation) != 1 or conversation[0].get("role") != "user":
        raise PromptError("a conversation is one message of the user here: these models answer one question at a time")
    content = conversation[0].get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list | tuple) or not all(isinstance(part, Mapping) for part in parts):
        raise PromptError("a message's content is a text, or a list of images and texts")
    images: list[Any] = []
    texts: list[str] = []
    for part in parts:
        kind = part.get("type")
        if kind not in ("image", "text") or part.get(kind) is None:
            raise PromptError(
                'a part is {"type": "image", "image": ...} or {"type": "text", "text": ...}, ' + f"not {part!r:.60}"
            )
        (images if kind == "image" else texts).append(part[kind])
    return images, " ".join(texts)


def _groups(images: Any, text: str | Sequence[str]) -> list[list[Visual]]:
    """The pictures of each text."""
    shown = [images] if isinstance(text, str) else images
    if not isinstance(shown, list | tuple) or len(shown) != (1 if isinstance(text, str) else len(text)):
        raise ImageError("a list of texts needs a list with an image, or several, for each")
    groups = [list(one) if isinstance(one, list | tuple) else [one] for one in shown]
    if not all(groups):
        raise ImageError("a question about no image: give at least one, or leave images out")
    return groups


def _visuals(pixels: Tensor | None, frames: Tensor | None, places: int) -> list[Visual]:
    """The pictures and videos that a processor's tensors hold, one per placeholder."""
    given = 0 if pixels is None else len(pixels)
    counts = [0] * given if frames is None else [int(count) for count in frames]
    if len(counts) != places or sum(max(count, 1) for count in counts) != given:
        raise ImageError(
            f"the rows have places for {places} images: pass the processor's pixel_values and frames with them"
        )
    if pixels is None:
        return []
    parts = pixels.split([max(count, 1) for count in counts])
    return [Video(part) if count else part[0] for part, count in zip(parts, counts, strict=True)]
