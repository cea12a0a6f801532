"""Training that computes only what enters a loss, and none of it otherwise: exact.

Padding influences nothing, logits without a label are never read, and of the last layer only the tokens with a label
are. `Prepared` leaves all of it out; with routers it is the baseline that they are put on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from flashu.errors import FlashUError
from flashu.models.batches import TaskRows
from flashu.models.layers import AttentionContext, KeyValue
from flashu.models.protocol import UnifiedModel
from flashu.models.training import IGNORED
from flashu.plan import LayerPlan
from flashu.runtime.compile import LayerCalls, run_layer
from flashu.runtime.layout import TokenLayout
from flashu.runtime.routing import Routed, Rows
from flashu.runtime.runner import Runner
from flashu.runtime.view import View
from flashu.training.cross_entropy import cross_entropy


@dataclass(frozen=True)
class Savings:
    """What is left out; each alone leaves the loss as it is.

    ``padding``: compute no padding; rows of similar lengths go together, so that at most the share ``waste`` of their
    tokens is padding (0: equal lengths only). ``last_layer``: of the last layer, queries and FFN of tokens with a label
    alone. ``head``: logits there alone. ``chunk``: rows of logits at a time, None = all. ``causal``: fused causal
    attention where a mask says nothing else. ``checkpoint``: keep no inner values of layers, and compute them again for
    the gradient (not a saving of work).
    """

    padding: bool = True
    waste: float = 0.02
    last_layer: bool = True
    head: bool = True
    chunk: int | None = 2048
    causal: bool = True
    checkpoint: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.waste < 1:
            raise FlashUError(f"waste must be in [0, 1), not {self.waste}")
        if self.chunk is not None and self.chunk < 1:
            raise FlashUError(f"chunk must be at least 1 or None, not {self.chunk}")

    @classmethod
    def none(cls) -> Savings:
        return cls(False, 0.0, False, False, None, False)

    @classmethod
    def of(cls, **settings: Any) -> Savings:
        """All on, but for these; `FlashUError` for an unknown one."""
        if unknown := sorted(settings.keys() - cls.__dataclass_fields__.keys()):
            raise FlashUError(f"unknown savings {', '.join(unknown)}; known are {', '.join(cls.__dataclass_fields__)}")
        return cls(**settings)


@dataclass
class Losses:
    """``tasks``: mean cross-entropy of each task's targets, of which there are ``counts``; ``weighted``: their weighted
    sum; ``auxiliary``: that of the routers by (task, layer), mean over the task's real tokens; ``routed``: what
    happened in routed layers, by task; ``logits`` by task [B, S, V], where they were asked for."""

    tasks: dict[str, Tensor]
    weighted: Tensor
    counts: dict[str, int] = field(default_factory=dict)
    auxiliary: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    routed: dict[str, list[Routed]] = field(default_factory=dict)
    logits: dict[str, Tensor] = field(default_factory=dict)

    @property
    def auxiliary_sum(self) -> Tensor:
        return sum(self.auxiliary.values(), torch.zeros_like(self.weighted))


Plans = Mapping[str, LayerPlan]


class Prepared:
    """A model whose losses are computed without waste. ``plans``: the layer plan of each task's rows (default: every
    layer, every token); ``routers``: what they call, by name."""

    def __init__(
        self,
        model: UnifiedModel,
        savings: Savings | None = None,
        plans: Plans | None = None,
        routers: Mapping[str, Tensor] | None = None,
        force: Callable[[TaskRows], Tensor | None] | None = None,
    ) -> None:
        self.model, self.savings = model, savings or Savings()
        self.plans = dict(plans or {})
        self._force = force or (lambda rows: None)
        calls = LayerCalls()
        if self.savings.checkpoint:
            calls.layer = _checkpointed
        self.runner = Runner(model, calls=calls, routers=routers)

    def __call__(self, batch: Sequence[TaskRows], *, logits: bool = False) -> Losses:
        return self.losses(batch, logits=logits)

    def losses(self, batch: Sequence[TaskRows], *, logits: bool = False) -> Losses:
        """The losses of a batch; rows of one task may come in several parts. ``logits``: give all of them, which saves
        nothing."""
        if not batch:
            raise FlashUError("there are no rows to learn from: give at least one task's")
        total: dict[str, list[Tensor]] = {}
        count: dict[str, int] = {}
        weight: dict[str, float] = {}
        found = Losses({}, torch.zeros(()))
        aux: dict[tuple[str, int], tuple[Tensor, int]] = {}
        for rows in batch:
            if weight.setdefault(rows.task, rows.weight) != rows.weight:
                raise FlashUError(f"rows of task {rows.task!r} have unlike weights")
            whole = logits or not self.savings.padding
            for part in [rows] if whole else rows.unpadded(self.savings.waste):
                part = part.simplified()
                loss, many, routed = self._part(part, found.logits if logits else None)
                total.setdefault(rows.task, []).append(loss)
                count[rows.task] = count.get(rows.task, 0) + many
                found.routed.setdefault(rows.task, []).extend(routed)
                for one in routed:
                    key = (rows.task, one.route.layer)
                    before = aux.get(key)
                    new = one.auxiliary()
                    aux[key] = new if before is None else (before[0] + new[0], before[1] + new[1])
        if empty := sorted(task for task, many in count.items() if not many):
            raise FlashUError(f"rows of {', '.join(empty)} have nothing to predict: leave them out of the batch")
        found.counts = count
        found.tasks = {task: torch.stack(parts).sum() / count[task] for task, parts in total.items()}
        found.weighted = torch.stack([weight[task] * loss for task, loss in found.tasks.items()]).sum()
        found.auxiliary = {key: loss / max(many, 1) for key, (loss, many) in aux.items()}
        return found

    @torch.no_grad()
    def logits(self, batch: Sequence[TaskRows]) -> Tensor:
        """All logits [rows, S, V] of rows of equal length, each at its ``place``."""
        parts: dict[int, Tensor] = {}
        for rows in batch:
            assert rows.place is not None
            found: dict[str, Tensor] = {}
            self._part(rows.simplified(), found)
            parts |= zip(rows.place, found[rows.task], strict=True)
        return torch.stack([parts[n] for n in sorted(parts)])

    def _part(self, rows: TaskRows, logits: dict[str, Tensor] | None) -> tuple[Tensor, int, tuple[Routed, ...]]:
        """Sum of the losses of rows, the number of targets, the routing."""
        model, savings = self.model, self.savings
        x = rows.tokens if rows.tokens.is_floating_point() else model.embed_tokens(rows.tokens)
        wanted = rows.targets != IGNORED
        layout = layout_of(rows)
        view = View(model.rope(rows.position), rows.mask if savings.causal else rows.explicit())
        plan = self.plans.get(rows.task, LayerPlan())
        asked: Any = "all"
        if savings.last_layer and logits is None:
            asked, wanted, targets = labelled(wanted, rows.targets)
        else:
            targets = rows.targets
        details = Rows(rows.lengths, self._force(rows))
        done = self.runner.walk(x, layout, plan, view=view, read=asked, rows=details)
        if logits is not None:
            logits[rows.task] = model.logits(done.hidden)
        elif not savings.head:
            low, high = rows.codes or (0, None)
            every = model.logits(done.hidden)[wanted].float()[..., low:high]
            loss = torch.nn.functional.cross_entropy(every, targets[wanted] - low, reduction="sum")
            return loss, int(wanted.sum()), done.routed
        low = 0 if rows.codes is None else rows.codes[0]
        parameters = tuple(model.get_output_embeddings().parameters())
        loss = cross_entropy(
            lambda hidden: model.logits(hidden, rows.codes),
            parameters,
            done.hidden[wanted],
            targets[wanted] - low,
            savings.chunk,
        )
        return loss, int(wanted.sum()), done.routed


def layout_of(rows: TaskRows) -> TokenLayout:
    """What routing reads of rows; who sees whom is in their mask."""
    at = torch.arange(rows.shape[1]).expand(rows.shape)
    visual = torch.zeros(rows.shape, dtype=torch.bool) if rows.visual is None else rows.visual.cpu()
    return TokenLayout(at, at, at, rows.valid.cpu(), visual)


def labelled(wanted: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Indices [B, Q] of the tokens that ``wanted`` [B, S] marks, which of the indices are such, and their targets."""
    most = max(1, int(wanted.sum(1).max()))
    index = (~wanted).long().argsort(dim=1, stable=True)[:, :most]
    return index, wanted.gather(1, index), targets.gather(1, index)


def _checkpointed(layer: Any, x: Tensor, context: AttentionContext, *more: Any) -> tuple[Tensor, KeyValue]:
    return checkpoint(run_layer, layer, x, context, *more, use_reentrant=False)
