"""Drafts: what proposes the tokens that a forward then verifies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from flashu.plan import LayerPlan
from flashu.runtime.cache import KVBlock
from flashu.runtime.context import Context
from flashu.runtime.sampling import Chooser


@dataclass(eq=False)
class DraftBatch:
    """Rows of a block that are to be drafted for.

    ``pending`` [B]: the last token of each, not yet computed. ``known``: its text tokens so far, the pending one the
    last. ``choosers``: how its tokens are chosen. ``lengths``: how many of its drafted tokens are used. Rows that have
    stopped go along: of those, ``known`` is empty, the chooser None and the length 0. ``step``: (tokens [B], a layer
    plan) -> the model's logits [B, V] after one token more in every row.
    """

    block: KVBlock
    pending: Tensor
    known: Sequence[Sequence[int]]
    choosers: Sequence[Chooser | None]
    lengths: Sequence[int]
    step: Callable[[Tensor, LayerPlan], Tensor]
    chances: list[Tensor] = field(default_factory=list)
    """The distributions [B, V] that tokens were drawn from so far; a row that is not drawn has nothing in them."""
    _chosen: int = 0

    def choose(self, logits: Tensor, ids: Tensor | None = None, vocabulary: int = 0) -> Tensor:
        """The next drafted token [B] of each row, from logits [B, V], or [B, n] of the tokens ``ids`` [n] alone of a
        ``vocabulary``."""
        drawing = [n for n, chooser in enumerate(self.choosers) if chooser is not None and not chooser.greedy]
        # A row draws no more than it uses, so that its tokens do not depend on its batch.
        drawn, self._chosen = [n for n in drawing if self._chosen < self.lengths[n]], self._chosen + 1
        best = logits.argmax(-1)
        tokens = best if ids is None else ids[best]
        if not drawing:
            return tokens
        if ids is not None:
            logits = logits.new_full((len(logits), vocabulary), -torch.inf).index_copy(1, ids, logits)
        chances = torch.zeros(logits.shape, device=logits.device)
        for n in drawn:
            chooser = self.choosers[n]
            assert chooser is not None
            p = chooser.distribution(logits[n : n + 1])
            tokens[n], chances[n] = chooser.draw(p)[0], p[0]
        self.chances.append(chances)
        return tokens


class Drafter(Protocol):
    """Proposes tokens. What it proposes changes the speed of a request, never its result.

    ``collect``: layers of the model whose outputs it reads. ``layers``: the plan under which the model drafts itself,
    None = it does not. ``cost``: time of a drafted token, as a share of the model's for one.
    """

    @property
    def collect(self) -> Sequence[int]: ...
    @property
    def layers(self) -> LayerPlan | None: ...
    @property
    def cost(self) -> float: ...
    def features(self, collected: Sequence[Tensor]) -> Tensor:
        """What it keeps [B, S, D] of the collected outputs."""

    def begin(self, contexts: Sequence[Context], space: int) -> Any:
        """What it keeps (as `KVBlock.draft`) of rows that decode together from now on and take in ``space`` tokens.
        Those that have decoded before still say where."""

    def observe(self, block: KVBlock, ids: Tensor, features: Tensor | None) -> None:
        """Tokens ids [B, S] have been computed, with their features; how many each row keeps, the block will know."""

    def propose(self, batch: DraftBatch, length: int) -> Tensor:
        """``length`` tokens for each row [B, K]; drawn ones through `DraftBatch.choose`."""
