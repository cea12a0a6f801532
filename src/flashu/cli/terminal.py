"""What is shown: results on stdout, progress on stderr."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


def out() -> Console:
    return Console(soft_wrap=False)


def progress() -> Progress:
    """Bars on stderr, gone when done; silent unless that is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def emit(value: dict[str, Any]) -> None:
    """The one JSON object of `--json`."""
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))
