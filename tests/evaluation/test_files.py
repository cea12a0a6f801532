"""Files that appear whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from flashu.errors import FlashUError
from flashu.evaluation.files import atomic_write, write_json


def test_text_bytes_and_json_are_written(tmp_path: Path) -> None:
    file = tmp_path / "new" / "file"
    atomic_write(file, "grün\n")
    assert file.read_bytes() == "grün\n".encode()
    atomic_write(file, b"\x00\xff")
    assert file.read_bytes() == b"\x00\xff"
    write_json(file, {"ä": [1]})
    assert json.loads(file.read_text(encoding="utf-8")) == {"ä": [1]}
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    atomic_write(file, "old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(FlashUError, match="file cannot be written: No space left"):
        atomic_write(file, "new")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_the_data_is_on_disk_before_the_file_takes_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: events.append("fsync") or fsync(file))
    monkeypatch.setattr(os, "replace", lambda *names: events.append("replace") or replace(*names))
    atomic_write(tmp_path / "file", "x")
    assert events == ["fsync", "replace"]


def test_a_folder_that_is_a_file_is_said(tmp_path: Path) -> None:
    atomic_write(tmp_path / "file", "")
    with pytest.raises(FlashUError, match="cannot be written"):
        atomic_write(tmp_path / "file" / "inside", "x")
