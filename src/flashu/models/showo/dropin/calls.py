"""What the authors' scripts give their two methods, understood; and what cannot be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flashu.models.showo import naive
from flashu.models.showo.config import ShowOConfig
from flashu.models.showo.layout import seen_by_all
from flashu.models.showo.text import SpecialIds
from flashu.runtime.layout import TokenLayout


@dataclass(frozen=True)
class DrawCall:
    """One call of `t2i_generate`. ``ids`` [B, S]: left-padded rows [prompt, soi, image, eoi]; ``null`` [B, T]: the
    unconditional prompts, None without guidance; ``mask``: of all rows; ``count``: codes of an image."""

    ids: Tensor
    null: Tensor | None
    mask: Tensor | None
    count: int
    temperature: float
    forwards: int
    guidance: float
    share: Callable[[Tensor], Tensor]
    generator: torch.Generator | None

    @property
    def first(self) -> Tensor:
        """The images [B, N] as they are given."""
        return self.ids[:, -self.count - 1 : -1]

    @property
    def prompts(self) -> Tensor:
        return self.ids[:, : -self.count - 2]

    def unlike_any_drawing(self, config: ShowOConfig) -> str:
        """Why only the original can compute this call; "" if it can be computed here."""
        marks = SpecialIds.behind(config.text_tokens, -1, -1)
        if self.forwards < 1:
            return "there is no forward"
        image = self.ids[:, -self.count - 2 :]
        low, high = config.codes
        known = (self.first == config.mask) | ((self.first >= low) & (self.first < high))
        if not bool((image[:, 0] == marks.soi).all() & (image[:, -1] == marks.eoi).all() & known.all()):
            return "the rows do not end with soi, codes or masks, and eoi"
        if self.null is not None and self.null.shape != self.prompts.shape:
            return "the prompts with and without words are of unlike lengths"
        prompts = self.prompts if self.null is None else torch.cat((self.prompts, self.null))
        padding = prompts == marks.pad
        if bool((padding[:, 1:] & ~padding[:, :-1]).any() | padding.all(1).any() | (prompts == marks.soi).any()):
            return "the prompts are not padded on the left"
        rows = torch.cat((prompts, image.repeat(len(prompts) // len(image), 1)), dim=1)
        if not isinstance(self.mask, Tensor) or self.mask.shape != (len(rows), 1, rows.shape[1], rows.shape[1]):
            return "there is no mask of all rows"
        seen = self.mask if self.mask.dtype is torch.bool else self.mask == 0
        if not torch.equal(seen, naive.drawing_mask(rows, marks.pad, marks.soi, marks.eoi)):
            return "the mask is not that of prompts and images"
        return ""


def stripped(prompt: Tensor, pad: int) -> list[int]:
    """A prompt's ids without its padding."""
    return prompt[prompt != pad].tolist()


class CallNoise:
    """The numbers of a whole batch, drawn from the caller's generator (or torch's own) as the original draws them:
    for each forward those of all rows."""

    def __init__(self, rows: int, generator: torch.Generator | None, device: torch.device) -> None:
        self._rows, self._generator, self._device = rows, generator, device
        self._drawn: list[Tensor] = []

    def row(self, index: int) -> RowNoise:
        return RowNoise(self, index)

    def draw(self, at: int, shape: tuple[int, ...], exponential: bool) -> Tensor:
        """The numbers [rows, *shape] that are drawn as the ``at``-th."""
        if at == len(self._drawn):
            empty = torch.empty(self._rows * shape[0], *shape[1:], device=self._device)
            if exponential:
                numbers = empty.exponential_(generator=self._generator)
            else:
                numbers = empty.uniform_(generator=self._generator)
            self._drawn.append(numbers.view(self._rows, *shape))
        return self._drawn[at]


class RowNoise:
    """Those of one row."""

    def __init__(self, of: CallNoise, index: int) -> None:
        self._of, self._index = of, index
        self._next: Iterator[int] = iter(range(1 << 30))

    def exponential(self, *shape: int) -> Tensor:
        return self._of.draw(next(self._next), shape, True)[self._index]

    def uniform(self, *shape: int) -> Tensor:
        return self._of.draw(next(self._next), shape, False)[self._index]


def layout_of(mask: Any, ids: Tensor | None, config: ShowOConfig, length: int) -> TokenLayout | None:
    """Where the tokens of a question [1, S] stand and what they see: causal, some columns seen by all. None for other
    masks."""
    if not isinstance(mask, Tensor) or mask.numel() != length * length:
        return None
    seen = (mask if mask.dtype is torch.bool else mask == 0).reshape(length, length).cpu()
    every = seen.all(0).nonzero()[:, 0].tolist()
    start = 0 if every == list(range(len(every))) else 1
    every = every[start:]
    if not every or every != list(range(every[0], every[-1] + 1)):
        return None
    if not torch.equal(seen, naive.features_mask(length, every[0], len(every))[0, 0]):
        return None
    visual = torch.zeros(length, dtype=torch.bool)
    if ids is None:
        visual[every[0] : every[-1] + 1] = len(every) > 1
    else:
        low, high = config.codes
        visual[every] = ((ids[0, every] >= low) & (ids[0, every] < high)).cpu()
    return seen_by_all(length, every[0], every[-1] + 1, visual)
