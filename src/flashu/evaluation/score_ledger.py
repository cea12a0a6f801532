"""Finished work as JSON lines, so that a long run can be interrupted and taken up again."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

FORMAT = 1
"""Raised whenever the same key would stand for other work."""


def key_of(*parts: Any) -> str:
    """The name of a piece of work: a hash of everything it depends on."""
    text = json.dumps([FORMAT, *parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Ledger:
    """Values by key. With a ``path`` they outlive the process: each is one line, appended in one write.

    A line torn by an interruption is cut off when the file is next opened.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.values: dict[str, Any] = {}
        if path is not None and path.exists():
            whole = path.read_bytes()
            end = whole.rfind(b"\n") + 1
            if end < len(whole):
                with path.open("r+b") as file:
                    file.truncate(end)
            for line in whole[:end].splitlines():
                entry = json.loads(line)
                self.values[entry["key"]] = entry["value"]

    def recall(self, key: str) -> Any | None:
        return self.values.get(key)

    def record(self, key: str, value: Any) -> None:
        self.values[key] = value
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"key": key, "value": value}) + "\n"
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, line.encode())
        finally:
            os.close(file)
