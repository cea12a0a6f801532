"""Trains the scenes model: flow matching on images, answers on questions, dense auxiliary losses on the cells."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from flashu.scenes.world import SCENES, World
from flashu.training.scenes.data import Batch, Batcher
from flashu.training.scenes.network import Network


@dataclass(frozen=True)
class Settings:
    """One training run. Learning rates fall linearly to a hundredth over `steps`, after `warmup`."""

    steps: int
    generation: int = 112  # rows of each kind in a batch
    understanding: int = 24
    muon_lr: float = 0.016
    adam_lr: float = 2e-3
    warmup: int = 100
    ema: float = 0.995
    answer_weight: float = 2.0
    auxiliary_weight: float = 1.0
    time_mean: float = -1.3
    seed: int = 0


class Probes(nn.Module):
    """Linear readers of the cells for the dense auxiliary losses; they are not part of the model."""

    def __init__(self, width: int, world: World = SCENES) -> None:
        super().__init__()
        self.side = world.side
        self.sizes = [len(world.shapes) + 1, len(world.colours) + 1, self.side, self.side]
        self.fused = nn.Linear(width, sum(self.sizes))
        self.noisy = nn.Linear(width, sum(self.sizes))
        self.around = nn.Linear(width, 4)

    def loss(self, tokens: Tensor, cells: Tensor, reader: nn.Linear) -> Tensor:
        """tokens [B,N,h], cells [B,N,2] -> cross-entropy of shape, colour, row and column.

        Occupied cells count as much as all together: there are few of them, and they are what matters.
        """
        place = torch.arange(self.side**2, device=tokens.device).expand(len(tokens), -1)
        targets = (cells[..., 0], cells[..., 1], place // self.side, place % self.side)
        occupied = (cells[..., 0] > 0).flatten().float()
        weight = 0.5 / occupied.numel() + 0.5 * occupied / occupied.sum()
        total = torch.zeros((), device=tokens.device)
        for part, target in zip(reader(tokens).float().split(self.sizes, dim=-1), targets, strict=True):
            total = total + (weight * F.cross_entropy(part.flatten(0, 1), target.flatten(), reduction="none")).sum()
        return total / 4

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
        s, network = self.settings, self.network
        images = _to(self.batcher.generation(s.generation), self.device)
        asked = _to(self.batcher.understanding(s.understanding), self.device)
        with torch.autocast(self.device, torch.bfloat16), sdpa_kernel([SDPBackend.MATH]):
            t = torch.sigmoid(torch.randn(s.generation, device=self.device) + s.time_mean)
            noise = torch.randn_like(images.latents)
            mixed = torch.lerp(noise, images.latents, t[:, None, None, None])
            states = network.forward(*images.rows, mixed, t)
            drawn = network.velocity(states, *images.rows[1:], images.size)
            flow = F.mse_loss(drawn.float(), images.latents - noise)
            board = self.probes.loss(states.hidden[:, images.image][:, 1:], images.cells, self.probes.noisy)
            around = self.probes.neighbours(states.middle[:, images.image][:, 1:], images.cells)

            clean = torch.ones(s.understanding, device=self.device)
            states = network.forward(*asked.rows, asked.latents, clean)
            answered = asked.targets != -100
            answer = F.cross_entropy(network.logits(states.hidden[answered]).float(), asked.targets[answered])
            seen = self.probes.loss(states.fused, asked.cells, self.probes.fused)
        loss = flow + s.answer_weight * answer + s.auxiliary_weight * (board + around + seen)
        loss.backward()
        nn.utils.clip_grad_norm_([p for g in self.optimizers[1].param_groups for p in g["params"]], 1.0)
        for optimizer, base in zip(self.optimizers, (s.muon_lr, s.adam_lr), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = base * self.rate()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self._update_average()
        losses = {"flow": flow, "answer": answer, "board": board, "around": around, "seen": seen}
        return {k: v.detach() for k, v in losses.items()}

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
        }

    def load_state_dict(self, state: dict) -> None:
        self.step, self.average = state["step"], state["average"]
        self.model.load_state_dict(state["model"])
        self.probes.load_state_dict(state["probes"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)


def _to(batch: Batch, device: str) -> Batch:
    moved = {k: getattr(batch, k).to(device) for k in ("ids", "pos", "mask", "latents", "cells", "targets")}
    return replace(batch, **moved)
