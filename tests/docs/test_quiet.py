"""A library does not print: it logs under its own name, and leaves what becomes of that to the program."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "src" / "flashu"
PROGRAMS = {"cli", "demo"}
WRITES = {"print", "rich.print", "warnings.warn", "sys.stdout.write", "sys.stderr.write"}
ROOT_LOGGERS = {"debug", "info", "warning", "error", "exception", "critical", "log", "basicConfig", "disable"}


def is_guard(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def library_calls() -> Iterator[tuple[str, str, ast.Call]]:
    """(where, what is called, the call) outside the programs: cli, demo, `__main__.py` and the main() of a module that
    runs with `python -m`."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE)
        if name.parts[0] in PROGRAMS or path.name == "__main__.py":
            continue
        body = ast.parse(path.read_text(encoding="utf-8")).body
        if any(map(is_guard, body)):
            body = [n for n in body if not is_guard(n) and getattr(n, "name", "") != "main"]
        for node in (node for part in body for node in ast.walk(part)):
            if isinstance(node, ast.Call):
                yield f"{name}:{node.lineno}", ast.unparse(node.func), node


def test_nothing_is_printed() -> None:
    assert not [where for where, name, _ in library_calls() if name in WRITES]


def test_loggers_are_ours() -> None:
    asked = [(where, name, call.args) for where, name, call in library_calls() if name.endswith("getLogger")]
    assert asked
    for where, name, arguments in asked:
        assert name == "logging.getLogger", where
        assert len(arguments) == 1, f"{where} asks for the root logger"
        [wanted] = arguments
        ours = isinstance(wanted, ast.Constant) and str(wanted.value).split(".")[0] == "flashu"
        assert ours or ast.unparse(wanted) == "__name__", where


def test_logging_is_left_to_the_program() -> None:
    for where, name, _ in library_calls():
        assert name not in {f"logging.{function}" for function in ROOT_LOGGERS}, where
        assert not name.endswith((".addHandler", ".setLevel")), where
