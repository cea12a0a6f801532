"""Random numbers of one sample: the same on every device and in every batch."""

from __future__ import annotations

import torch
from torch import Tensor


class Noise:
    """Numbers drawn one after another from a seed, fp32 on the CPU."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator)

    def exponential(self, *shape: int) -> Tensor:
        """argmax(p / exponential) is a sample of p, without a sum or a device sync."""
        return torch.empty(shape).exponential_(generator=self.generator)
