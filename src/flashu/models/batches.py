"""Rows of a training batch, by task: what training computes a loss of, whatever family they are for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from flashu.models.training import IGNORED

Mask = Literal["causal"] | Tensor


@dataclass(frozen=True, eq=False)
class TaskRows:
    """B rows of S tokens of one task.

    ``tokens``: ids [B, S], or embedded [B, S, D]. ``position`` [B, S]: rotary. ``mask``: "causal", or bool
    [B, 1, S, S], True = may attend. ``valid`` bool [B, S]: False for padding. ``targets`` [B, S]: the id that the
    output at each token is to predict, -100 = none. ``weight``: of the mean loss of its targets in the total.
    ``codes``: range of the vocabulary that the targets are among (None = all of it). ``visual`` bool [B, S]: tokens of
    an image. ``lengths``: tokens that a share to keep is of, by row; None = the real ones. ``place``: which rows of the
    caller's batch they are.
    """

    task: str
    tokens: Tensor
    position: Tensor
    mask: Mask
    valid: Tensor
    targets: Tensor
    weight: float = 1.0
    codes: tuple[int, int] | None = None
    visual: Tensor | None = None
    lengths: tuple[int, ...] | None = None
    place: tuple[int, ...] | None = None

    @property
    def shape(self) -> torch.Size:
        return self.position.shape

    def pick(self, rows: Sequence[int], columns: Tensor) -> TaskRows:
        """Some rows, of each the tokens at ``columns`` [B', K] in order; -1 is padding."""
        at, there = columns.clamp(min=0), columns >= 0
        row = torch.tensor(rows, device=at.device)[:, None]
        mask = self.mask
        if not isinstance(mask, str):
            every = mask.expand(len(self.position), -1, -1, -1)[row[:, :, None], 0, at[:, :, None], at[:, None]]
            # Padding sees itself, so that its (unused) output is finite.
            eye = torch.eye(at.shape[1], dtype=torch.bool, device=at.device)
            mask = (every & there[:, None] | eye)[:, None]
        return replace(
            self,
            tokens=self.tokens[row, at],
            position=self.position[row, at],
            mask=mask,
            valid=self.valid[row, at] & there,
            targets=self.targets[row, at].masked_fill(~there, IGNORED),
            visual=None if self.visual is None else self.visual[row, at] & there,
            lengths=None if self.lengths is None else tuple(self.lengths[r] for r in rows),
            place=None if self.place is None else tuple(self.place[r] for r in rows),
        )

    def unpadded(self, waste: float = 0.0) -> Iterator[TaskRows]:
        """The rows without padding, longest first, those of similar lengths together: at most the share ``waste`` of
        their tokens is padding then (0: rows of equal lengths only)."""
        lengths = self.valid.sum(1).tolist()
        order = sorted((r for r in range(len(lengths)) if lengths[r]), key=lambda r: -lengths[r])
        at = (~self.valid).long().argsort(dim=1, stable=True)  # real tokens first, in order
        while order:
            width = lengths[order[0]]
            together: list[int] = []
            real = 0
            for r in order:
                if real + lengths[r] < (1 - waste) * width * (len(together) + 1):
                    break
                together.append(r)
                real += lengths[r]
            order = order[len(together) :]
            count = torch.tensor([lengths[r] for r in together], device=at.device)
            beyond = torch.arange(width, device=at.device) >= count[:, None]
            yield self.pick(together, at[together, :width].masked_fill(beyond, -1))

    def explicit(self) -> Tensor:
        """The mask as a tensor; nothing but itself sees padding that stands before other tokens."""
        if not isinstance(self.mask, str):
            return self.mask
        width = self.shape[1]
        causal = torch.ones(width, width, dtype=torch.bool, device=self.valid.device).tril()
        if self._padded_behind():
            return causal[None, None]
        eye = torch.eye(width, dtype=torch.bool, device=causal.device)
        return (causal & self.valid[:, None, None, :]) | eye

    def simplified(self) -> TaskRows:
        """With "causal" as the mask where it says the same of all real tokens, and only there."""
        behind = self._padded_behind()
        if isinstance(self.mask, str):
            return self if behind else replace(self, mask=self.explicit())
        width = self.shape[1]
        causal = torch.ones(width, width, dtype=torch.bool, device=self.mask.device).tril()
        same = (self.mask == causal) | ~self.valid[:, None, :, None]
        return replace(self, mask="causal") if behind and bool(same.all()) else self

    def _padded_behind(self) -> bool:
        return bool((self.valid[:, 1:] <= self.valid[:, :-1]).all())


class Tuning(Protocol):
    """A training program's own calls, as a family reads and answers them. ``model``: ours, over the program's
    modules."""

    model: Any

    def dropout(self) -> bool:
        """Whether a forward of the program would leave values out at random now."""

    def rows(self, *args: Any, **kwargs: Any) -> list[TaskRows]:
        """The rows of a call of the program's forward, by task, with their ``place``; without labels nothing is to be
        predicted. `FlashUError` for a call that cannot be answered."""

    def output(self, losses: Any, auxiliary: Tensor, logits: Tensor | None, call: Mapping[str, Any]) -> Any:
        """What that forward returns. ``losses``: `training.exact.Losses`, None for a call without labels;
        ``auxiliary``: the routers' loss, weighted; ``call``: the named arguments."""
