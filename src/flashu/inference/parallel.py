"""Guidance branches on several devices: each process computes some rows of a drawing's forwards, and gets all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from flashu.errors import FlashUError
from flashu.inference.engine import Engine
from flashu.inference.speculate import DraftSource
from flashu.models.adapter import Adapter
from flashu.plan.presets import RecipeSource
from flashu.runtime.executor import Executor
from flashu.runtime.request import Output, StepRequest
from flashu.runtime.slots import SlotPool


class BranchExecutor(Executor):
    """Computes row r of a block's forward on rank r modulo the group's size. Contexts are computed when they are first
    read, so a rank holds those of its own branches alone. What has fewer rows than there are ranks, and what is no
    block, is computed by every rank."""

    group: Any = None

    def forward(self, requests: Sequence[StepRequest]) -> list[Output]:
        rank, size = dist.get_rank(self.group), dist.get_world_size(self.group)
        split = [request.step.kind == "block" and len(request.rows) >= size for request in requests]
        own = [_part(r, rank, size) if divided else r for r, divided in zip(requests, split, strict=True)]
        outputs = super().forward(own)
        return [
            self._whole(output, len(request.rows), rank, size) if divided else output
            for output, request, divided in zip(outputs, requests, split, strict=True)
        ]

    def _whole(self, output: Output, rows: int, rank: int, size: int) -> Output:
        """The output of all rows, equal bit for bit on every rank."""

        def gathered(part: Tensor | None) -> Tensor | None:
            if part is None:
                return None
            whole = part.new_zeros((rows, *part.shape[1:]))
            whole[rank::size] = part
            dist.all_reduce(whole, group=self.group)  # each row is of one rank: a sum with zeros
            return whole

        similarity = output.similarity
        if similarity is not None:
            layers = torch.tensor(similarity, device=self.model.device) * len(range(rank, rows, size))
            dist.all_reduce(layers, group=self.group)
            similarity = tuple((layers / rows).tolist())
        return replace(
            output, values=gathered(output.values), features=gathered(output.features), similarity=similarity
        )


class BranchParallelEngine(Engine):
    """An engine each of whose drawing forwards is shared out by guidance branch. Every rank makes the same calls with
    the same settings and seeds, and gets the same results; each holds the whole model on its own device."""

    group: Any = None

    @classmethod
    def over(cls, engine: Engine, group: Any = None) -> BranchParallelEngine:
        """``engine`` on the ranks of a torch.distributed ``group`` (None: all of them)."""
        if not dist.is_available() or not dist.is_initialized():
            raise FlashUError("branches on several devices need processes that know each other: start with torchrun")
        if engine.prepared.graphs is not None:
            raise FlashUError("a captured forward holds all branches: load without graphs")
        if engine.adapter is not None:
            raise FlashUError("with an adapter there is one branch: nothing to share out")
        one = cls.__new__(cls)
        one._hold(engine.model, engine.processor, engine.speculation)
        one.prepared, one.group = engine.prepared, group
        return one

    def executor(self, slots: SlotPool | None = None) -> Executor:
        drafter = None if self.speculation is None else self.speculation.drafter
        executor = BranchExecutor(self.prepared.runner(self.model), None, slots, drafter)
        executor.group = self.group
        return executor

    def with_recipe(
        self,
        recipe: RecipeSource = "exact",
        draft: DraftSource = None,
        adapter: str | Path | Adapter | None = None,
    ) -> Engine:
        return self.over(super().with_recipe(recipe, draft, adapter), self.group)


def _part(request: StepRequest, rank: int, size: int) -> StepRequest:
    features = request.features
    return replace(request, rows=request.rows[rank::size], features=None if features is None else features[rank::size])
