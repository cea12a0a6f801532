"""Rows of a call: what is known of the tokens to come, and the noise that samples the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flashu.models.emu3.dropin.call import Call, Unlike


@dataclass(frozen=True)
class Course:
    """The tokens to come of one row: ids that are known, None where a code is drawn. ``ended``: whether it ends by
    itself."""

    tokens: tuple[int | None, ...]
    ended: bool

    @property
    def drawn(self) -> list[int]:
        """The steps at which codes are drawn."""
        return [step for step, token in enumerate(self.tokens) if token is None]

    def known_after(self, index: int) -> tuple[int, ...]:
        """The ids between code ``index`` and the next; from -1 on, before the first."""
        at = [-1, *self.drawn, len(self.tokens)]
        return tuple(token for token in self.tokens[at[index + 1] + 1 : at[index + 2]] if token is not None)


def course(call: Call, row: int, codes: tuple[int, int], real: Sequence[int] | None = None) -> Course:
    """What ``call.allowed`` says of one row, before anything is drawn: it is asked about made-up codes, or ``real``
    tokens. `Unlike` where it allows something else than every code or one token."""
    assert call.allowed is not None
    start = call.ids.shape[1]
    space = torch.empty(start + call.limit, dtype=call.ids.dtype, device=call.ids.device)
    space[:start] = call.ids[row]
    tokens: list[int | None] = []
    every: Any = None
    for step in range(call.limit if real is None else len(real)):
        allowed = call.allowed(row, space[: start + step])
        if len(allowed) == 1:
            token = int(allowed[0])
            tokens.append(token)
            if token in call.eos:
                return Course(tuple(tokens), True)
        else:
            if allowed is not every and sorted(int(n) for n in allowed) != list(range(*codes)):
                raise Unlike("it draws among other tokens than all codes")
            every = allowed
            tokens.append(None)
        space[start + step] = codes[0] if tokens[-1] is None else tokens[-1]
        if real is not None:
            space[start + step] = real[step]
    return Course(tuple(tokens), False)


class StepNoise:
    """Exponential noise as ``torch.multinomial`` draws it for all rows and the whole vocabulary at every step, from
    torch's own generator: the same seed samples the same tokens."""

    def __init__(self, rows: int, vocabulary: int, device: torch.device) -> None:
        self._shape, self._device = (rows, vocabulary), device
        self._drawn: dict[int, Tensor] = {}
        self._steps = 0
        self._next = [0] * rows
        """The first step that a row may still ask for."""

    def at(self, step: int, row: int) -> Tensor:
        """[vocabulary]"""
        self.go_to(step + 1)
        self._next[row] = step + 1
        noise = self._drawn[step][row]
        for old in [n for n in self._drawn if n < min(self._next)]:
            del self._drawn[old]
        return noise

    def go_to(self, steps: int) -> None:
        """Draw up to so many steps in all."""
        while self._steps < steps:
            self._drawn[self._steps] = torch.empty(self._shape, device=self._device).exponential_()
            self._steps += 1

    def done(self, row: int) -> None:
        """A row that will ask no more."""
        self._next[row] = 2**62


class RowNoise:
    """One row's noise over the codes, at its steps in turn; see `inference.samplers.noise.Noise`."""

    def __init__(self, shared: StepNoise, row: int, steps: Sequence[int], codes: tuple[int, int]) -> None:
        self._shared, self._row, self._codes = shared, row, codes
        self._steps = iter(steps)

    def exponential(self, *shape: int) -> Tensor:
        return self._shared.at(next(self._steps), self._row)[slice(*self._codes)]


class Chooser:
    """How one row's next token of text is chosen, at its steps in turn; as transformers samples."""

    def __init__(self, call: Call, shared: StepNoise | None, row: int) -> None:
        self._call, self._shared, self._row, self._step = call, shared, row, -1

    def __call__(self, logits: Tensor) -> Tensor:
        """Logits [1, V] -> token [1]."""
        self._step += 1
        if self._shared is None:
            return logits.argmax(-1)
        scores = logits.float() / self._call.temperature
        if 0 < self._call.top_k < scores.shape[-1]:
            scores = scores.masked_fill(scores < scores.topk(self._call.top_k).values[:, -1:], -torch.inf)
        noise = self._shared.at(self._step, self._row)
        return (scores.softmax(-1) / noise.to(scores.device)).argmax(-1)
