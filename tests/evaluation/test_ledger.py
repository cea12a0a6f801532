"""The ledger through interruptions, full disks and a second process."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashu.errors import FlashUError
from flashu.evaluation import ledger as module
from flashu.evaluation.ledger import Ledger, key_of, read_ledger

RUN = {"model": "49234bd4ceeb4472", "recipe": {"methods": [], "τ": 0.3}, "sizes": (64, 64)}
ROOT = Path(__file__).parents[2]

numbers = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
values = st.recursive(numbers, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5)
records = st.lists(st.tuples(st.text(), values), max_size=6)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "ledger.jsonl"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ledgers")


def written(path: Path, *pairs: tuple[str, Any]) -> list[int]:
    """Append pairs; returns the size of the file after the header and after each of them."""
    path.unlink(missing_ok=True)
    with Ledger(path, RUN) as ledger:
        sizes = [path.stat().st_size]
        for key, value in pairs:
            ledger.append(key, value)
            sizes.append(path.stat().st_size)
    return sizes


@given(pairs=records, data=st.data())
def test_cut_anywhere_it_keeps_every_whole_record_and_takes_new_ones(
    pairs: list[tuple[str, Any]], data: st.DataObject, folder: Path
) -> None:
    path = folder / "cut.jsonl"
    sizes = written(path, *pairs)
    length = data.draw(st.integers(0, sizes[-1]))
    with path.open("r+b") as file:
        file.truncate(length)
    whole = sum(size <= length for size in sizes[1:])
    assert read_ledger(path) == dict(pairs[:whole])
    with Ledger(path, RUN) as ledger:
        assert ledger.values == dict(pairs[:whole])
        ledger.append("new", [1, {"a": "b"}])
    assert read_ledger(path) == dict(pairs[:whole]) | {"new": [1, {"a": "b"}]}


@given(pairs=records, tail=st.binary(min_size=1, max_size=60))
def test_whatever_a_crash_leaves_behind_the_records_is_dropped(
    pairs: list[tuple[str, Any]], tail: bytes, folder: Path
) -> None:
    """A file system may have grown the file before it wrote the data: zeros, or anything."""
    path = folder / "tail.jsonl"
    sizes = written(path, *pairs)
    with path.open("ab") as file:
        file.write(tail)
    with Ledger(path, RUN) as ledger:
        assert ledger.values == dict(pairs)
    assert path.stat().st_size == sizes[-1]


def test_a_torn_record_is_logged_in_one_line(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sizes = written(path, ("a", 1), ("b", 2))
    with path.open("r+b") as file:
        file.truncate(sizes[-1] - 5)
    with caplog.at_level(logging.INFO, logger="flashu"):
        Ledger(path, RUN).close()
        Ledger(path, RUN).close()
    torn = sizes[2] - 5 - sizes[1]
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: {torn} bytes torn by an interruption are dropped"
    ]


def test_every_line_is_json_with_its_checksum(path: Path) -> None:
    written(path, ("a", [1.5, None, "ä\u2028\r\n"]), ("a", 2))
    header, first, second = path.read_text().splitlines()
    assert json.loads(header)["run"] == json.loads(json.dumps(RUN))
    assert json.loads(first)["value"] == [1.5, None, "ä\u2028\r\n"]
    assert read_ledger(path) == {"a": 2}  # the last one counts
    body = second[: second.rindex(', "crc32"')]
    assert json.loads(second)["crc32"] == f"{zlib.crc32(body.encode()):08x}"


def test_damage_within_is_an_error_not_a_loss(path: Path) -> None:
    written(path, ("a", 1), ("b", 2), ("c", 3))
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"value": 2', b'"value": 5'))
    with pytest.raises(FlashUError, match="line 3 is damaged"):
        Ledger(path, RUN)
    assert path.stat().st_size == len(data)


@pytest.mark.parametrize(
    "text", ["{}\n", "something else", '{"key": "a", "value": 1}\n', '{"format": "flashu-ledger-0"']
)
def test_other_files_are_left_alone(text: str, path: Path) -> None:
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(FlashUError, match="not a ledger of this version"):
        Ledger(path, RUN)
    assert path.read_text() == text


def test_a_ledger_of_another_run_is_refused(path: Path) -> None:
    written(path, ("a", 1))
    with pytest.raises(FlashUError, match=r"made with model '49234bd4ceeb4472' \(now 'other'\)"):
        Ledger(path, RUN | {"model": "other"})
    with pytest.raises(FlashUError, match="seed None"):
        Ledger(path, RUN | {"seed": 3})
    with Ledger(path, RUN) as ledger:  # and the lock was let go
        assert ledger.values == {"a": 1}


def test_a_value_is_computed_once(path: Path) -> None:
    calls = iter([3, 4])
    with Ledger(path, RUN) as ledger:
        assert [ledger.get_or_add("a", lambda: next(calls)) for _ in range(2)] == [3, 3]
    with Ledger(path, RUN) as ledger:
        assert ledger.get_or_add("a", lambda: next(calls)) == 3


def test_without_a_path_it_lives_as_long_as_the_process() -> None:
    with Ledger() as ledger:
        ledger.append("a", 1)
        assert ledger.values == {"a": 1}


def test_keys_are_of_everything_given() -> None:
    assert key_of("a", {"x": 1, "y": 2}) == key_of("a", {"y": 2, "x": 1})
    assert len({key_of("a"), key_of("b"), key_of("a", 1), key_of("a", "1")}) == 4


class FullDisk:
    """A file that takes so many bytes and no more, as a short write on a full disk does."""

    def __init__(self, file: Any, space: int) -> None:
        self.file, self.space = file, space

    def write(self, data: memoryview) -> int:
        if not self.space:
            raise OSError(28, "No space left on device")
        done = self.file.write(data[: self.space])
        self.space -= done
        return done

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@pytest.mark.parametrize("space", [0, 1, 20])
def test_a_full_disk_leaves_the_file_as_it_was(space: int, path: Path) -> None:
    written(path, ("a", 1))
    before = path.read_bytes()
    with Ledger(path, RUN) as ledger:
        file = ledger._file
        ledger._file = FullDisk(file, space)  # type: ignore[assignment]
        with pytest.raises(FlashUError, match="No space left"):
            ledger.append("b", "x" * 100)
        assert path.read_bytes() == before
        assert ledger.values == {"a": 1}
        ledger._file = FullDisk(file, 10_000)  # type: ignore[assignment]
        ledger.append("b", 2)
    assert read_ledger(path) == {"a": 1, "b": 2}


def test_a_short_write_is_finished(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(FullDisk):
        def write(self, data: memoryview) -> int:
            return self.file.write(data[:7])

    with Ledger(path, RUN) as ledger:
        ledger._file = Slow(ledger._file, 0)  # type: ignore[assignment]
        ledger.append("a", "x" * 50)
    assert read_ledger(path) == {"a": "x" * 50}


def test_an_interruption_while_writing_leaves_nothing_behind(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(file: int) -> None:
        raise KeyboardInterrupt

    with Ledger(path, RUN) as ledger:
        ledger.append("a", 1)
        monkeypatch.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ledger.append("b", 2)
        monkeypatch.undo()
        ledger.append("c", 3)
    assert read_ledger(path) == {"a": 1, "c": 3}


def test_a_record_is_on_disk_when_append_returns(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bytes] = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(path.read_bytes()))
    with Ledger(path, RUN) as ledger:
        ledger.append("a", 1)
        assert synced[-1] == path.read_bytes()
    assert len(synced) == 2  # the header and the record


HOLD = """
import sys
from flashu.evaluation.ledger import Ledger
ledger = Ledger(__import__("pathlib").Path(sys.argv[1]), {})
ledger.append("theirs", 1)
print("holding", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the ledger open."""
    pytest.importorskip("fcntl")
    command = [sys.executable, "-c", HOLD, str(path)]
    env = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "holding\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_until_the_first_ends(path: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(FlashUError, match="another process is writing to"):
        Ledger(path, {})
    assert read_ledger(path) == {"theirs": 1}  # reading is allowed
    holder.kill()
    holder.wait()
    with Ledger(path, {}) as ledger:
        ledger.append("mine", 2)
    assert read_ledger(path) == {"theirs": 1, "mine": 2}


def test_a_file_system_without_locks_is_logged(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def none(*_: Any) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with Ledger(path, RUN) as ledger:
        ledger.append("a", 1)
    assert "not locked against other processes: No locks available" in caplog.text


def test_a_system_without_flock_still_keeps_results(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "fcntl", None)
    written(path, ("a", 1))
    assert read_ledger(path) == {"a": 1}


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FlashUError, match="cannot be written"):
        Ledger(tmp_path / "file" / "ledger.jsonl", RUN)
