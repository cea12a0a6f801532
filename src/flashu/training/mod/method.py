"""Losses of a routed model: exact training's, with each task's rows under its own plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flashu.errors import FlashUError
from flashu.models.batches import TaskRows
from flashu.models.training import IGNORED
from flashu.training.exact import Losses, Prepared, Savings
from flashu.training.mod.config import UniModConfig
from flashu.training.mod.routers import Routers


class RoutedTraining:
    """A model with routers beside it. Call it with a batch of `TaskRows`; optimize ``model.parameters()`` and
    ``routers.parameters()`` on `total`."""

    def __init__(
        self, model: Any, config: UniModConfig, routers: Routers | None = None, *, seed: int = 0, **savings: Any
    ) -> None:
        self.model, self.config = model, config
        self.routers = (routers or Routers(config, model.spec, seed)).to(model.device)
        tasks = {*config.keep, *config.skip}
        self.prepared = Prepared(
            model,
            Savings.of(**savings),
            {task: config.plan(task) for task in tasks},
            self.routers.weights(),
            self._forced,
        )

    def __call__(self, batch: Sequence[TaskRows], *, logits: bool = False) -> Losses:
        return self.losses(batch, logits=logits)

    def losses(self, batch: Sequence[TaskRows], *, logits: bool = False) -> Losses:
        if not self.config.padding:
            batch = [replace(rows, lengths=tuple(rows.valid.sum(1).tolist())) for rows in batch]
        return self.prepared.losses(batch, logits=logits)

    def total(self, losses: Losses) -> Tensor:
        """What is minimized: the weighted task losses and the routers'."""
        return losses.weighted + self.config.auxiliary * losses.auxiliary_sum

    def _forced(self, rows: TaskRows) -> Tensor | None:
        force = self.config.force.get(rows.task, "none")
        if force == "answers":
            # A token is learnt where the output at the one before predicts it.
            learnt = rows.targets != IGNORED
            return torch.cat((torch.zeros_like(learnt[:, :1]), learnt[:, :-1]), dim=1)
        if force == "text":
            if rows.visual is None:
                raise FlashUError(f"rows of task {rows.task!r} do not say which tokens are an image's: force nothing")
            return ~rows.visual & rows.valid
        return None
