"""The bench's counts on a model: composed runs and FLOPs."""

from __future__ import annotations

from collections import Counter

import pytest
from tests.bench.small import TASKS, counted, program, subject

from flashu.bench.steps import AROUND, PROMPT, compose

ROWS = ["original", "exact", "paper"]


@pytest.mark.parametrize("task", TASKS)
def test_sampled_counts_compose_to_those_of_a_whole_run(task: str) -> None:
    """The composition, checked to 3% where it can be checked exactly: in FLOPs."""
    about = subject(task, new_tokens=12)
    for name in ROWS:
        row = program(name, about)
        sampled, whole = counted(row, whole=False), counted(row, whole=True)
        composed = compose(sampled.spans, row.counts())
        exactly = sum(span.amount for span in whole.spans if span.kind.step not in AROUND)
        assert composed == pytest.approx(exactly, rel=0.03), name
        forwards = {kind: n for kind, n in row.counts().items() if kind.step != PROMPT}
        assert Counter(s.kind for s in whole.spans if s.kind.step not in {*AROUND, PROMPT}) == forwards, name


@pytest.mark.parametrize("task", TASKS)
def test_counted_flops_are_those_the_shapes_say(task: str) -> None:
    about = subject(task, batch=2)
    for name in ROWS:
        row = program(name, about)
        whole = counted(row, whole=True)
        forwards = sum(span.amount for span in whole.spans if span.kind.step not in AROUND)
        assert forwards == pytest.approx(row.flops, rel=0.03), name
