"""Choosing tokens from logits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flashu.runtime.sampling import chooser, distribution


@pytest.mark.parametrize("temperature", [1e-40, 5e-324, 1e-3])
def test_the_least_temperature_is_greedy(temperature: float) -> None:
    logits = torch.tensor([[3.0, -2.0, 3.5, 0.0]])
    assert int(chooser(temperature=temperature)(logits)) == 2


@given(st.lists(st.floats(-1e4, 1e4), min_size=2, max_size=9), st.floats(1e-30, 1e6), st.floats(0.01, 1))
def test_probabilities_are_finite_and_sum_to_one(row: list[float], temperature: float, top_p: float) -> None:
    p = distribution(torch.tensor([row]), temperature, None, top_p)
    assert p.isfinite().all()
    assert float(p.sum()) == pytest.approx(1, abs=1e-5)
