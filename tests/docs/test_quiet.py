"""A library does not print: it logs under its own name, and leaves what becomes of that to the program."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src" / "flashu"
PROGRAMS = {"cli", "demo"}
FILES = sorted(PACKAGE.rglob("*.py"))
LIBRARY = [p for p in FILES if p.relative_to(PACKAGE).parts[0] not in PROGRAMS]
LIBRARY = [p for p in LIBRARY if p.name != "__main__.py"]  # `python -m` is a program too
ROOT_LOGGERS = {"debug", "info", "warning", "error", "exception", "critical", "log", "basicConfig"}


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_the_library_is_found() -> None:
    assert len(LIBRARY) > 50


@pytest.mark.parametrize("path", LIBRARY, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_is_printed(path: Path) -> None:
    for name, call in calls(path):
        assert name not in {"print", "rich.print", "warnings.warn"}, f"{path.name}:{call.lineno}"
        assert name not in {"sys.stdout.write", "sys.stderr.write"}, f"{path.name}:{call.lineno}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_loggers_are_ours_and_unconfigured(path: Path) -> None:
    for name, call in calls(path):
        where = f"{path.name}:{call.lineno}"
        if name.endswith("getLogger"):
            assert name == "logging.getLogger", where
            assert len(call.args) == 1, where
            asked = call.args[0]
            ours = isinstance(asked, ast.Constant) and str(asked.value).split(".")[0] == "flashu"
            assert ours or ast.unparse(asked) == "__name__", where
        library = path in LIBRARY
        if library and name.startswith("logging."):
            assert name.removeprefix("logging.") not in ROOT_LOGGERS, f"{where} writes to the root logger"
        if library and name.endswith((".addHandler", ".setLevel", ".disable")):
            raise AssertionError(f"{where} configures logging")
