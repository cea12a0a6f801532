"""A subject small enough to bench in a test, and a clock that no machine disturbs."""

from __future__ import annotations

from flashu.bench import rows
from flashu.bench.measure import Sample, short_run, whole_run
from flashu.bench.programs import Program, program_of
from flashu.bench.subject import TASK, Subject, open_subject
from flashu.evaluation.flops import FlopClock, counting

TASKS = tuple(task for task in TASK if task != "edit")  # Show-o2 does not edit


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


def subject(task: str, batch: int = 1, steps: int = 10, new_tokens: int = 6) -> Subject:
    return open_subject("scenes", task, batch=batch, steps=steps, new_tokens=new_tokens)


def program(name: str, about: Subject) -> Program:
    (row,) = rows.choose_rows(about.task, [name])
    return program_of(row, about)


def counted(program: Program, *, whole: bool) -> Sample:
    """FLOPs of every span of a run."""
    clock = FlopClock()
    with counting(clock):
        return whole_run(program, clock) if whole else short_run(program, clock)
