"""Distribution matching along the student's own path (Hyper-Bagel's DMDO; the gradient as in DMD2)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flashu.models.adapter import Adapter, AdapterFacts
from flashu.runtime.runner import Runner
from flashu.training.distill.batch import Batch
from flashu.training.distill.rows import guided, velocities


@dataclass(frozen=True, eq=False)
class Path:
    """The student's own drawing: ``states`` [points + 1, B, ...], from noise to picture, at ``times``."""

    states: Tensor
    times: list[float]


@torch.no_grad()
def own_path(student: Runner, batch: Batch, points: int) -> Path:
    """Euler steps from the batch's noise."""
    times = batch.rows[0].times(points)
    states = [batch.noise]
    for now, later in pairwise(times):
        velocity = velocities(student, batch.rows, states[-1], [now] * len(batch.rows), scales=batch.scales)
        states.append(states[-1] + (later - now) * velocity.float())
    return Path(torch.stack(states), times)


class Fake:
    """A model of what the student draws: a second adapter over the same frozen weights, and its optimizer."""

    def __init__(self, model: Any, facts: AdapterFacts, lr: float, clip: float) -> None:
        self.adapter, self.clip = Adapter(model, facts), clip
        for module in self.adapter.modules.values():
            module.float()
        self.trained = dict(self.adapter.named_parameters())
        self.runner = Runner(self.adapter.on(model))
        self.optimizer = torch.optim.AdamW(self.trained.values(), lr=lr, betas=(0.9, 0.97), weight_decay=0.0)

    def learn(self, batch: Batch, path: Path, times: np.ndarray) -> Tensor:
        """One update on the student's drawings; its loss, before."""
        loss = fake_loss(self.runner, batch, path, times)
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained.values(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def state_dict(self) -> dict[str, Any]:
        weights = {name: p.detach() for name, p in self.trained.items()}
        return {"weights": weights, "optimizer": self.optimizer.state_dict()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state["weights"].items():
            self.trained[name].copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])


def fake_loss(fake: Runner, batch: Batch, path: Path, times: np.ndarray) -> Tensor:
    """How well the fake model knows the velocities between noise and what the student drew of it, at ``times`` [B]."""
    drawn = path.states[-1]
    states = mixed(batch.noise, drawn, times)
    velocity = velocities(fake, batch.rows, states, times.tolist(), scales=batch.scales)
    return (velocity.float() - (drawn - batch.noise)).square().mean()


def matching_loss(
    student: Runner, teacher: Runner, fake: Runner, batch: Batch, path: Path, which: np.ndarray, times: np.ndarray
) -> Tensor:
    """Its gradient at the picture that the student's step from state ``which`` [B] leads to is the fake model's picture
    less the guided teacher's, both seen at ``times`` [B], over the mean distance to the teacher's."""
    own = torch.arange(len(which), device=path.states.device)
    state = path.states[torch.from_numpy(which).to(own), own]
    start = np.array(path.times)[which]
    velocity = velocities(student, batch.rows, state, start.tolist(), scales=batch.scales)
    picture = state + _column(1 - start, state) * velocity.float()
    with torch.no_grad():
        seen = mixed(batch.noise, picture, times)
        left = _column(1 - times, state)
        real = seen + left * guided(teacher, batch.rows, seen, times.tolist(), batch.scales)
        known = seen + left * velocities(fake, batch.rows, seen, times.tolist(), scales=batch.scales).float()
        size = (picture - real).abs().flatten(1).mean(1).clamp(min=1e-6)
        target = picture - torch.nan_to_num((known - real) / size[:, None, None, None])
    return 0.5 * (picture - target).square().mean()


def mixed(noise: Tensor, picture: Tensor, times: np.ndarray) -> Tensor:
    """Latents at flow times [B], 0 = noise."""
    return torch.lerp(noise, picture, _column(times, noise).expand_as(noise))


def _column(values: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(values).to(like)[:, None, None, None]
