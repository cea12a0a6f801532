"""Small text files that users name."""

from __future__ import annotations

from pathlib import Path

from flashu.errors import FlashUError

MOST = 64 * 2**20
"""Bytes of a text file that are read at most."""


def given_text(path: Path) -> str:
    """The same, with one `FlashUError` for whatever cannot be read."""
    try:
        return read_text(path)
    except (OSError, ValueError) as error:
        raise FlashUError(f"{path} cannot be read as text in UTF-8: {error}") from error


def read_text(path: Path) -> str:
    """The text of a regular file. `OSError` or `ValueError` for what is none: reading a pipe or a device may never
    end."""
    if path.exists() and not path.is_file():
        raise ValueError("it is not a regular file")
    if path.is_file() and (size := path.stat().st_size) > MOST:
        raise ValueError(f"it has {size:,} bytes, more than {MOST:,}")
    return path.read_text(encoding="utf-8")
