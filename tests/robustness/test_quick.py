"""A part of what `make test-robust` tries: no defect in any class."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from tests.robustness.__main__ import every
from tests.robustness.cases import run

EACH = {"checkpoints": 60, "pictures": 120, "requests": 150, "recipes": 100, "drafts": 30, "commands": 50}


@pytest.mark.filterwarnings("ignore")
def test_no_defects(tmp_path: Path) -> None:
    made = every(tmp_path, seed=1)
    counts, defects = run(itertools.chain.from_iterable(made[name][:most] for name, most in EACH.items()))
    assert not defects, "\n".join(defects)
    assert counts.total() == sum(EACH.values())
