"""Results of a long run, kept as they are finished, so that it can be interrupted and continued."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from io import FileIO
from pathlib import Path
from typing import Any

from flashu.errors import FlashUError

try:
    import fcntl
except ModuleNotFoundError:  # Windows: nothing is locked
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger("flashu")
FORMAT = "flashu-ledger-1"
"""Raised whenever a file could be read wrongly, or the same key would stand for another result."""
BEGINS = f'{{"format": "{FORMAT}"'.encode()
ENDS = len(b', "crc32": "00000000"}')


def key_of(*parts: Any) -> str:
    """A key for a result: 32 hex digits of everything that it depends on."""
    text = json.dumps([FORMAT, *parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Ledger:
    """Values by key; the last value of a key counts. With a ``path`` they outlive the process.

    The file has one JSON object per line, each with a checksum: a header that says what ``run`` this is, then the
    records. A record is on disk when `append` returns. One that an interruption tore is cut off when the file is next
    opened. `FlashUError` if the file belongs to another run, or another process has it open.
    """

    def __init__(self, path: Path | None = None, run: Mapping[str, Any] | None = None) -> None:
        self.path = path
        self.values: dict[str, Any] = {}
        self._file: FileIO | None = None
        if path is not None:
            self._file = self._opened(path, {} if run is None else run)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes write."""
        if self._file is not None:
            self._file.close()

    def get_or_add(self, key: str, compute: Callable[[], Any]) -> Any:
        """The value of a key, computed and appended if it is not here yet."""
        if key not in self.values:
            self.append(key, compute())
        return self.values[key]

    def append(self, key: str, value: Any) -> None:
        if self._file is not None:
            _write(self._file, {"key": key, "value": value})
        self.values[key] = value

    def _opened(self, path: Path, run: Mapping[str, Any]) -> FileIO:
        with ExitStack() as stack:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context(path.open("a+b", buffering=0))
            except OSError as error:
                raise FlashUError(f"{path} cannot be written: {error.strerror or error}") from error
            _lock(file)
            file.seek(0)
            data = file.read()
            known, self.values, size = _read(data, path)
            if size < len(data):
                log.warning("%s: %d bytes torn by an interruption are dropped", path, len(data) - size)
                file.truncate(size)
            if known is None:
                _write(file, {"format": FORMAT, "run": run})
            else:
                check_run(path, known, run)
            stack.pop_all()
        return file


def read_ledger(path: Path) -> dict[str, Any]:
    """The values of a file that another process may be writing."""
    return _read(path.read_bytes(), path)[1]


def check_run(path: Path, known: Mapping[str, Any], run: Mapping[str, Any]) -> None:
    """`FlashUError` unless ``path``, where the results of the ``known`` run are, can take those of ``run``."""
    run = json.loads(json.dumps(run))
    if differing := [key for key in sorted({*known, *run}) if known.get(key) != run.get(key)]:
        was = ", ".join(f"{key} {known.get(key)!r} (now {run.get(key)!r})" for key in differing[:3])
        raise FlashUError(f"{path} holds results made with {was}: give another folder")


def _read(data: bytes, path: Path) -> tuple[dict[str, Any] | None, dict[str, Any], int]:
    """(run, values, bytes of the whole records). What follows those was torn by an interruption."""
    lines = data.split(b"\n")[:-1]
    found = [_parsed(line) for line in lines]
    whole = max((number for number, record in enumerate(found, 1) if record is not None), default=0)
    if None in found[:whole]:
        raise FlashUError(f"{path}: line {found.index(None) + 1} is damaged: delete it, or move the file away")
    if not BEGINS.startswith(data[: len(BEGINS)]):
        raise FlashUError(f"{path} is not a ledger of this version: move it away")
    header, *records = [record for record in found[:whole] if record is not None] or [{}]
    values = {record["key"]: record["value"] for record in records}
    return header.get("run"), values, sum(len(line) + 1 for line in lines[:whole])


def _write(file: FileIO, record: Mapping[str, Any]) -> None:
    """Append a record and wait until it is on disk; after a failure the file is as before."""
    body = json.dumps(record)[:-1].encode()
    rest = memoryview(body + _end(body) + b"\n")
    size, done = file.seek(0, os.SEEK_END), False
    try:
        while rest:
            rest = rest[file.write(rest) :]
        os.fsync(file.fileno())
        done = True
    except OSError as error:
        raise FlashUError(f"{file.name} cannot be written: {error.strerror or error}") from error
    finally:
        if not done:
            file.truncate(size)


def _parsed(line: bytes) -> dict[str, Any] | None:
    """A record, None if its checksum is not right."""
    body, end = line[:-ENDS], line[-ENDS:]
    return json.loads(body + b"}") if end == _end(body) else None


def _end(body: bytes) -> bytes:
    return b', "crc32": "%08x"}' % zlib.crc32(body)


def _lock(file: FileIO) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise FlashUError(f"another process is writing to {file.name}: wait for it, or give another folder") from error
    except OSError as error:
        log.warning("%s is not locked against other processes: %s", file.name, error.strerror)
