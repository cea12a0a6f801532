"""Attention received by visual tokens against their value norms (FlashU Figure 5)."""

from __future__ import annotations

import torch
from torch import Tensor

from flashu.runtime.layout import TokenLayout
from flashu.runtime.scores import probabilities, text_after_images


class NormAgainstAttention:
    """Observer of prefills with an image: per layer, Spearman correlation over the visual tokens between the attention
    they receive from the text after them and the L2 norm of their value vectors, averaged over the samples."""

    def __init__(self, num_layers: int) -> None:
        self.sums = torch.zeros(num_layers)
        self.counts = torch.zeros(num_layers)
        self._query: Tensor | None = None
        self._key: Tensor | None = None

    def __call__(self, layer: int, expert: str, name: str, value: Tensor, layout: TokenLayout) -> None:
        if name == "query":
            self._query = value
        elif name == "key":
            self._key = value
        elif name == "value" and bool(layout.visual.any()):
            assert self._query is not None
            assert self._key is not None
            received = probabilities(self._query, self._key, layout).mean(1).cpu()
            norms = value.float().square().sum(dim=(1, 3)).sqrt().cpu()
            after = text_after_images(layout)
            for row in range(len(received)):
                visual = layout.visual[row]
                self.sums[layer] += spearman(received[row][after[row]][:, visual].mean(0), norms[row][visual])
                self.counts[layer] += 1

    def correlation(self) -> Tensor:
        """[layers]"""
        if not bool(self.counts.all()):
            raise RuntimeError("no prefill with an image was observed")
        return self.sums / self.counts


def spearman(x: Tensor, y: Tensor) -> float:
    """Rank correlation of two samples [N]."""
    ranks = torch.stack([v.argsort().argsort().float() for v in (x, y)])
    return float(torch.corrcoef(ranks)[0, 1])
