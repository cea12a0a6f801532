"""Questions in the manner of transformers: a processor makes tensors, `generate` continues them, `batch_decode` reads.

    inputs = processor(images=image, text="how many circles are there?", return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=8)
    print(processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :])[0])

transformers itself is not needed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flashu.errors import FlashUError, ImageError, PromptError
from flashu.inference.engine import Engine
from flashu.inference.loops.decode import decode
from flashu.inference.requests import Shown, Visual, encoded, in_shots, pixels_of, positive, question_rows
from flashu.inference.run import Run
from flashu.interfaces.pipeline import Pipeline
from flashu.models.registry import resolve
from flashu.models.showo2.load import load_processor
from flashu.models.showo2.processor import Processor
from flashu.models.showo2.video import Video
from flashu.runtime.memory import enough_memory
from flashu.runtime.sampling import chooser, drawn_seed
from flashu.runtime.tokens import Tokens


class ChatInputs(dict[str, Tensor]):
    """What a `ChatProcessor` returns: ``input_ids`` and ``attention_mask`` [B, S], ``pixel_values`` [N, 3, H, W], and
    with videos ``frames``: of each placeholder in order, the number of pictures it stands for, 0 for an image."""

    def to(self, *args: Any, **kwargs: Any) -> ChatInputs:
        """The same tensors elsewhere."""
        return ChatInputs({name: tensor.to(*args, **kwargs) for name, tensor in self.items()})


class ChatProcessor:
    """Words and pictures to tensors, and ids back to words."""

    def __init__(self, processor: Processor) -> None:
        self.processor = processor

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str]) -> ChatProcessor:
        """The processor of "scenes", a folder or a hub id; no weights are read."""
        return cls(load_processor(resolve(source).source, autoencoder=None))

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
        words, pad = self.processor.text, self.processor.text.ids.pad
        inputs = ChatInputs()
        if images is None:
            rows = [words.message(one) for one in texts]
        else:
            groups = _groups(images, text)
            parts = [words.question_parts(q, len(group)) for q, group in zip(texts, groups, strict=True)]
            rows = [_joined(row, words.ids.img_pad) for row in parts]
            every = [seen for group in groups for seen in group]
            inputs["pixel_values"] = torch.cat([p for seen in every for p in pixels_of(self.processor, seen)])
            if any(isinstance(seen, Video) for seen in every):
                inputs["frames"] = torch.tensor([len(seen) if isinstance(seen, Video) else 0 for seen in every])
        longest = max(map(len, rows))
        inputs["input_ids"] = torch.tensor([[pad] * (longest - len(row)) + row for row in rows])
        inputs["attention_mask"] = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        return inputs

    def batch_decode(self, sequences: Tensor | Sequence[Sequence[int]], skip_special_tokens: bool = True) -> list[str]:
        """The words of each row of ids."""
        rows = sequences.tolist() if isinstance(sequences, Tensor) else [list(row) for row in sequences]
        decoder = self.processor.text.tokenizer
        return [decoder.decode(row, skip_special_tokens=skip_special_tokens) for row in rows]


class ChatModel:
    """An engine that continues the tensors of a `ChatProcessor`."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str], **settings: Any) -> ChatModel:
        """The model of "scenes", a folder or a hub id; settings as of `Pipeline.from_pretrained`."""
        return cls(Pipeline.from_pretrained(source, **settings).engine)

    @property
    def device(self) -> torch.device:
        return self.engine.model.device

    @torch.inference_mode()
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
        engine, text = self.engine, self.engine.processor.text
        given = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        rows = [row[on.bool()].tolist() for row, on in zip(input_ids, given, strict=True)]
        seed = drawn_seed(generator) if do_sample else 0
        pick = chooser(len(rows), temperature=temperature if do_sample else 0.0, top_k=top_k, top_p=top_p, seed=seed)
        default = engine.processor.defaults.max_new_tokens
        budget = positive("max_new_tokens", default if max_new_tokens is None else max_new_tokens)
        parts = [_split(row, text.ids.img_pad) for row in rows]
        engine.prepare("understanding")
        run = Run(engine.fitted.runner(engine.model), engine.recipe, "understanding", budget)
        with enough_memory(f"answer {len(rows)} rows at once", "ask fewer at a time, or use bf16 weights"):
            x, tokens = self._embedded(parts, pixel_values, frames)
            columns = list(decode(run, x, tokens, pick, text.ids.eos))
        new = [[text.ids.eos if token is None else token for token in column] for column in columns]
        answers = torch.tensor(new, dtype=torch.long).reshape(len(columns), len(rows)).T
        return torch.cat((input_ids.cpu(), answers), dim=1).to(input_ids.device)

    def _embedded(
        self, parts: list[list[list[int]]], pixels: Tensor | None, frames: Tensor | None
    ) -> tuple[Tensor, Tokens]:
        model, processor = self.engine.model, self.engine.processor
        counts = [len(texts) - 1 for texts in parts]
        given = 0 if pixels is None else len(pixels)
        shots = [0] * given if frames is None else [int(count) for count in frames]
        if sum(counts) != len(shots) or sum(max(count, 1) for count in shots) != given:
            raise ImageError(
                f"the rows have places for {sum(counts)} images: pass the processor's pixel_values and frames with them"
            )
        if pixels is None:
            rows = [torch.tensor(row) for [row] in parts]
            ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(model.device)
            return model.embed_text(ids), Tokens.text([len(row) for row in rows])
        if processor.vae is None:
            raise FlashUError("this model was loaded without an autoencoder, so it cannot see images")
        if 0 in counts:
            raise ImageError("questions and messages without an image do not go together: ask them apart")
        places = iter(range(len(shots)))
        shown = [[next(places) for _ in range(count)] for count in counts]
        latents = in_shots(encoded(model, processor, list(pixels.split(1))), shots)
        return question_rows(model, latents, parts, shown)


def _groups(images: Any, text: str | Sequence[str]) -> list[list[Visual]]:
    """The pictures of each text."""
    shown = [images] if isinstance(text, str) else images
    if not isinstance(shown, list | tuple) or len(shown) != (1 if isinstance(text, str) else len(text)):
        raise ImageError("a list of texts needs a list with an image, or several, for each")
    groups = [list(one) if isinstance(one, list | tuple) else [one] for one in shown]
    if not all(groups):
        raise ImageError("a question about no image: give at least one, or leave images out")
    return groups


def _joined(parts: Sequence[list[int]], place: int) -> list[int]:
    """Ids with one ``place`` between parts."""
    return [token for number, ids in enumerate(parts) for token in ([place] if number else []) + ids]


def _split(row: list[int], place: int) -> list[list[int]]:
    """Inverse of `_joined`."""
    parts: list[list[int]] = [[]]
    for token in row:
        if token == place:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts
