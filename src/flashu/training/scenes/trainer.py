"""Trains a scenes model: what it loses on pictures and answers, and dense auxiliary losses on the cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from flashu.models.training import Example, Outcome
from flashu.scenes.world import SCENES, World
from flashu.training.scenes.data import Batcher
from flashu.training.scenes.network import Network


@dataclass(frozen=True)
class Settings:
    """One training run. ``rows``: of each task in a batch. Learning rates fall linearly to a hundredth over ``steps``,
    after ``warmup``."""

    steps: int
    rows: Mapping[str, int] = field(default_factory=lambda: {"draw": 112, "answer": 24})
    muon_lr: float = 0.016
    adam_lr: float = 2e-3
    warmup: int = 100
    ema: float = 0.995
    answer_weight: float = 2.0
    auxiliary_weight: float = 1.0
    seed: int = 0


class Probes(nn.Module):
    """Linear readers of the cells for the dense auxiliary losses; they are not part of the model."""

    def __init__(self, width: int, world: World = SCENES) -> None:
        super().__init__()
        self.side = world.side
        self.colours = len(world.colours)
        self.sizes = [len(world.shapes) + 1, self.colours + 1, len(world.kinds) + 1, self.side, self.side]
        self.fused = nn.Linear(width, sum(self.sizes))
        self.noisy = nn.Linear(width, sum(self.sizes))
        self.around = nn.Linear(width, 4)

    def loss(self, tokens: Tensor, cells: Tensor, reader: nn.Linear) -> Tensor:
        """tokens [B,N,h], cells [B,N,2] -> cross-entropy of shape, colour, both at once, row and column.

        Both at once: where one of two objects may come, shape and colour apart would be bound in four ways. Occupied
        cells count as much as all together: there are few of them, and they are what matters.
        """
        place = torch.arange(self.side**2, device=tokens.device).expand(len(tokens), -1)
        shape, colour = cells.unbind(-1)
        kind = torch.where(shape > 0, (shape - 1) * self.colours + colour, 0)
        targets = (shape, colour, kind, place // self.side, place % self.side)
        occupied = (shape > 0).flatten().float()
        weight = 0.5 / occupied.numel() + 0.5 * occupied / occupied.sum()
        total = torch.zeros((), device=tokens.device)
        for part, target in zip(reader(tokens).float().split(self.sizes, dim=-1), targets, strict=True):
            total = total + (weight * F.cross_entropy(part.flatten(0, 1), target.flatten(), reduction="none")).sum()
        return total / len(self.sizes)

    def neighbours(self, tokens: Tensor, cells: Tensor) -> Tensor:
        """tokens [B,N,h] -> loss of telling whether any object lies left of, right of, above, below each cell.

        Relations need this half-way through the decoder; without the hint they were not learnt in 1,400 steps.
        """
        occupied = (cells[..., 0] > 0).unflatten(1, (self.side, self.side)).float()  # [B,row,column]
        columns, rows = occupied.sum(1), occupied.sum(2)  # objects in each column, in each row
        left, above = columns.cumsum(1) - columns, rows.cumsum(1) - rows
        right, below = columns.sum(1, keepdim=True) - columns - left, rows.sum(1, keepdim=True) - rows - above
        sides = [left[:, None, :], right[:, None, :], above[:, :, None], below[:, :, None]]
        target = torch.stack([(side > 0).float().expand_as(occupied) for side in sides], dim=-1).flatten(1, 2)
        loss = F.binary_cross_entropy_with_logits(self.around(tokens).float(), target, reduction="none").mean(-1)
        weight = 0.5 + 0.5 * occupied.flatten(1) / occupied.mean()
        return (weight * loss).mean()


class Trainer:
    """Model, average, optimisers and step counter: everything a checkpoint holds."""

    def __init__(
        self, settings: Settings, batcher: Batcher, network: Network, device: str, compile_layers: bool = True
    ) -> None:
        self.settings, self.batcher, self.network, self.device, self.step = settings, batcher, network, device, 0
        self.model = network.module.to(device)
        self.probes = Probes(network.width, batcher.world).to(device)
        self.average = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        matrices = network.matrices()
        chosen = {id(p) for p in matrices}
        rest = [p for p in [*self.model.parameters(), *self.probes.parameters()] if id(p) not in chosen]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=settings.muon_lr, weight_decay=0.02),
            torch.optim.AdamW(rest, lr=settings.adam_lr, betas=(0.9, 0.97), weight_decay=0.0),
        ]
        if compile_layers:
            network.compile()

    def rate(self) -> float:
        s = self.settings
        return min(1.0, (self.step + 1) / s.warmup) * max(0.01, 1 - self.step / s.steps)

    def train_step(self) -> dict[str, Tensor]:
        """One update; the losses by name, those of edits with the task before them."""
        s, network = self.settings, self.network
        found: dict[str, Tensor] = {}
        for task in network.tasks:
            examples = self.batcher.examples(task, s.rows[task])
            rows = network.rows(examples, self.batcher.pool)
            with torch.autocast(self.device, torch.bfloat16), sdpa_kernel([SDPBackend.MATH]):
                outcome = network.losses(rows)
                losses = dict(outcome.losses) | self._auxiliary(outcome, examples)
            weights = {"answer": s.answer_weight, **dict.fromkeys(("board", "around", "seen"), s.auxiliary_weight)}
            total = torch.stack([weights.get(name, 1.0) * loss for name, loss in losses.items()]).sum()
            total.backward()
            found |= {f"edit {k}" if task == "edit" else k: v.detach() for k, v in losses.items()}
        nn.utils.clip_grad_norm_([p for g in self.optimizers[1].param_groups for p in g["params"]], 1.0)
        for optimizer, base in zip(self.optimizers, (s.muon_lr, s.adam_lr), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = base * self.rate()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self._update_average()
        return found

    def _auxiliary(self, outcome: Outcome, examples: Sequence[Example]) -> dict[str, Tensor]:
        """The cells of the drawn picture read from its tokens, those of the shown one from what shows it."""
        probes, losses = self.probes, {}
        drawn, shown = (
            None if indices[0] is None else self.batcher.pool.cells[indices].to(self.device)
            for indices in ([e.drawn for e in examples], [e.shown for e in examples])
        )
        if outcome.drawn is not None and drawn is not None:
            losses["board"] = probes.loss(outcome.drawn, drawn, probes.noisy)
        if outcome.middle is not None and drawn is not None:
            losses["around"] = probes.neighbours(outcome.middle, drawn)
        if outcome.shown is not None and shown is not None:
            losses["seen"] = probes.loss(outcome.shown, shown, probes.fused)
        return losses

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.settings.ema, (1 + self.step) / (10 + self.step))
        state = self.model.state_dict()
        torch._foreach_lerp_(list(self.average.values()), [state[k] for k in self.average], 1 - decay)

    def averaged(self) -> Network:
        """A network of the averaged weights, for evaluation and export."""
        return self.network.copy(self.average)

    def state_dict(self) -> dict:
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "probes": self.probes.state_dict(),
            "average": self.average,
            "optimizers": [o.state_dict() for o in self.optimizers],
            "random": self._random(),
        }

    def _random(self) -> dict[str, Any]:
        """Where the random streams are: a run that is resumed goes on as if it had not stopped."""
        cuda = torch.cuda.get_rng_state(self.device) if torch.device(self.device).type == "cuda" else None
        return {"examples": self.batcher.state_dict(), "cpu": torch.get_rng_state(), "cuda": cuda}

    def load_state_dict(self, state: dict) -> None:
        self.step, self.average = state["step"], state["average"]
        self.model.load_state_dict(state["model"])
        self.probes.load_state_dict(state["probes"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        random = state.get("random")
        if random is None:  # of an older run: new examples from here on
            self.batcher.reseed(self.settings.seed + self.step)
            torch.manual_seed(self.settings.seed + self.step)
            return
        self.batcher.load_state_dict(random["examples"])
        torch.set_rng_state(random["cpu"].cpu())
        if random["cuda"] is not None and torch.device(self.device).type == "cuda":
            torch.cuda.set_rng_state(random["cuda"].cpu(), self.device)
