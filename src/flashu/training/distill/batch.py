"""What an update sees: rows, the pictures that are to come of them, noise, and guidance scales."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from flashu.inference.engine import Engine
from flashu.runtime.runner import Runner
from flashu.scenes.world import World
from flashu.training.distill.data import drawings, edits, latents_of
from flashu.training.distill.rows import Prompted, prompted
from flashu.training.distill.settings import Settings


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows with the pictures that are to come of them: ``clean`` latents and ``noise`` [B, z, h, w], and guidance
    ``scales`` of text and picture. ``rng``: for what else is random."""

    rows: Sequence[Prompted]
    clean: Tensor
    noise: Tensor
    scales: Sequence[tuple[float, float]]
    rng: np.random.Generator

    @classmethod
    def make(cls, engine: Engine, runner: Runner, settings: Settings, world: World, task: str, step: int) -> Batch:
        """Of update ``step``, whose number and the seed decide all of it; ``task``: "draw" or "edit"."""
        edit = task == "edit"
        count = settings.edits if edit else settings.drawings
        rng = np.random.default_rng((settings.seed, step, int(edit)))
        requests, scenes = (edits if edit else drawings)(world, count, rng)
        clean = latents_of(engine.processor, scenes).to(engine.model.device)
        noise = torch.from_numpy(rng.standard_normal(clean.shape, dtype=np.float32)).to(clean.device)
        rows = prompted(engine, [replace(one, shift=settings.shift) for one in requests], runner)
        low, high = zip(*settings.ranges(edit), strict=True)
        scales = [(float(text), float(image)) for text, image in rng.uniform(low, high, (count, 2))]
        return cls(rows, clean, noise, scales, rng)

    def at(self, times: np.ndarray) -> Tensor:
        """The latents at flow times [B], 0 = noise."""
        share = torch.from_numpy(times).to(self.noise)[:, None, None, None]
        return torch.lerp(self.noise, self.clean, share)

    def times(self, shift: float) -> np.ndarray:
        """Random times [B], moved towards noise."""
        u = self.rng.random(len(self.rows))
        return 1 - shift * u / (1 + (shift - 1) * u)
