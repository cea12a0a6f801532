"""What a case is, how it is run, and what counts as a defect.

A case calls the library or a command with something strange. It ends with a clear error (a `FlashUError` in printable
words, or exit code 1 or 2 with one line), or it is accepted where that is right. Everything else is a defect: another
exception, a traceback, more than `SECONDS`, or an input accepted that has to be refused.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from flashu.errors import FlashUError

SECONDS = 30
"""A case takes at most."""
LONGEST = 3100
"""Characters of a message at most."""
REFUSED, ACCEPTED, DEFECT = "clear error", "accepted rightly", "defect"


@dataclass(frozen=True)
class Case:
    """``run``: the call; ``wanted``: whether it must be refused or taken, or may be either."""

    group: str
    name: str
    run: Callable[[], Any]
    wanted: Literal["refuse", "accept", "either"] = "either"


class TooLong(BaseException):
    """No `Exception`, so that nothing under test catches it."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TooLong(f"not done after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def outcome(case: Case) -> tuple[str, str]:
    """How a case ended, and what was said."""
    try:
        with at_most(SECONDS):
            case.run()
    except FlashUError as error:
        said = str(error)
        if not said.strip() or len(said) > LONGEST or any(not c.isprintable() and c not in "\n\t" for c in said):
            return DEFECT, f"a message that cannot be shown: {said[:200]!r}"
        return (DEFECT if case.wanted == "accept" else REFUSED), said
    except (Exception, TooLong) as error:
        return DEFECT, f"{type(error).__name__}: {error}"[:500]
    return (DEFECT, "taken, but has to be refused") if case.wanted == "refuse" else (ACCEPTED, "")


def run(
    cases: Iterable[Case], show: Callable[[str], None] = lambda line: None
) -> tuple[Counter[tuple[str, str]], list[str]]:
    """Counts by (group, outcome), and a line for each defect."""
    counts: Counter[tuple[str, str]] = Counter()
    defects = []
    for case in cases:
        ended, said = outcome(case)
        counts[case.group, ended] += 1
        if ended == DEFECT:
            defects.append(f"{case.group}: {case.name}: {said}")
            show(defects[-1])
    return counts, defects


def table(counts: Counter[tuple[str, str]]) -> str:
    """In Markdown, a row for each group and one for all."""
    columns = (REFUSED, ACCEPTED, DEFECT)
    groups = sorted({group for group, _ in counts})
    rows = [(group, [counts[group, column] for column in columns]) for group in groups]
    rows.append(("all", [sum(row[n] for _, row in rows) for n in range(len(columns))]))
    lines = ["| class | tried | clear error | accepted rightly | defects |", "|---|---:|---:|---:|---:|"]
    lines += [f"| {group} | {sum(row)} | {' | '.join(map(str, row))} |" for group, row in rows]
    return "\n".join(lines)
