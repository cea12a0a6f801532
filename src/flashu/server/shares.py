"""Who goes next: drawings and answers share the machine."""

from __future__ import annotations

from typing import Literal

Task = Literal["generation", "understanding"]
BURST = 0.25
"""Seconds that prefills may take ahead of the answers' share."""


class Shares:
    """While both wait, each task gets its share of the model thread's time; a question's prefill goes before anything
    else unless answers have already had more than their share. Time that a task did not want is not owed to it."""

    def __init__(self, answers: float) -> None:
        self._weight: dict[Task, float] = {"generation": 1 - answers, "understanding": answers}
        self._had: dict[Task, float] = {"generation": 0.0, "understanding": 0.0}
        self._wanted: frozenset[Task] = frozenset()

    def choose(self, waiting: frozenset[Task], prefill: bool) -> Task:
        """Of the tasks that have work, the one whose turn it is; ``prefill``: a question has not begun."""
        for task in waiting - self._wanted:
            self._had[task] = max(self._had.values())
        self._wanted = waiting
        if len(waiting) == 1:
            return next(iter(waiting))
        ahead = self._had["understanding"] - self._had["generation"]
        if ahead <= 0 or (prefill and ahead < BURST):
            return "understanding"
        return "generation"

    def took(self, task: Task, seconds: float) -> None:
        self._had[task] += seconds / self._weight[task] / 2
