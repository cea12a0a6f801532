"""The correlation of ranks against scipy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch

from flashu.inference.calibrate.attention import spearman


def test_spearman_is_scipys() -> None:
    x, y = np.random.default_rng(3).random((2, 50))
    assert spearman(torch.tensor(x), torch.tensor(y)) == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
