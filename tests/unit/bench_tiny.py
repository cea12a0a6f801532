"""A subject small enough to bench in a test, and a clock that no machine disturbs."""

from __future__ import annotations

from dataclasses import replace

import torch
from tests.conftest import TINY, tiny_model

from flashu.bench import measure, rows
from flashu.bench.flops import FlopClock, counting
from flashu.bench.lanes import Banks, Lane, Take
from flashu.bench.random_weights import random_model
from flashu.bench.subject import Subject, subject_of

DEEPER = replace(TINY, llm=replace(TINY.llm, num_hidden_layers=12))
TASKS = {"t2i": "generation", "mmu": "understanding"}


class Ticks:
    """A clock that advances by one every time it is read."""

    def __init__(self) -> None:
        self.time = 0

    def now(self) -> int:
        self.time += 1
        return self.time

    def between(self, start: int, end: int) -> float:
        return float(end - start)

    def settle(self) -> None:
        pass


def subject(task: str, **settings: int) -> Subject:
    """The tiny model with layers enough for every row."""
    processor = tiny_model().processor
    assert processor is not None
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = random_model(DEEPER, torch.float32, torch.device("cpu"))
    return subject_of("tiny", model, processor, task, **{"steps": 10, "new_tokens": 6, **settings})


def lane(name: str, about: Subject, clock: object) -> Lane:
    (row,) = (row for row in rows.rows_of(TASKS[about.task]) if row.name == name)  # type: ignore[arg-type]
    return measure.lane_of(row, about, Banks(about.model), clock)  # type: ignore[arg-type]


def counted(name: str, about: Subject, whole: bool) -> tuple[Lane, Take]:
    """FLOPs of every piece of a lane's run."""
    clock = FlopClock()
    found = lane(name, about, clock)
    with counting(clock):
        return found, found.whole() if whole else found.sample()
