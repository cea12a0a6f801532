"""Imports go down only, packages on one floor do not know each other, and no family is known outside its folder."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from flashu.models.registry import FAMILIES
from flashu.plan.methods import METHODS
from tests.layering import FILES, FLOOR, FLOORS, PACKAGE, PUBLIC, home, imports, modules, package_of, tree


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    here = home(path)
    for other in {package_of(*parts) for parts in modules(path)} - {here}:
        assert FLOOR[other] < FLOOR[here], f"{here} must not import {other}"


def test_there_are_few_floors() -> None:
    assert len(FLOORS) <= 10
    assert {home(path) for path in FILES} == FLOOR.keys()


def test_no_file_imports_a_family_but_its_own() -> None:
    """The registry imports them by name when they are asked for."""
    found = []
    for path in set(FILES) - {PUBLIC}:
        own = path.relative_to(PACKAGE).parts[:2] if home(path) == "families" else None
        strange = {".".join(p) for p in modules(path) if package_of(*p) == "families" and p[:2] != own}
        found += [f"{path}: {name}" for name in sorted(strange)]
    assert not found


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_named_in_its_folder_and_the_registry_alone(name: str) -> None:
    allowed = {PUBLIC, PACKAGE / "models" / "registry.py"}
    # One name may be the beginning of another.
    folders = {PACKAGE / "models" / other for other in FAMILIES if name in other}
    others = [path for path in FILES if path not in allowed and not folders & {*path.parents}]
    assert not [str(path) for path in others if name in without_papers(path.read_text(encoding="utf-8").lower())]


def without_papers(text: str) -> str:
    """A text without the names of papers and their presets that hold a family's."""
    return text.replace("hyper-bagel", "").replace("emu3-paper", "")


def test_the_plan_imports_no_torch() -> None:
    for path in (PACKAGE / "plan").rglob("*.py"):
        assert "torch" not in {first for first, *_ in imports(path)}, path
    names = [".".join(("flashu", *path.relative_to(PACKAGE).with_suffix("").parts)) for path in FILES]
    code = (
        f"import importlib, sys\nfor name in {[n for n in names if n.startswith('flashu.plan')]}:\n"
        "    importlib.import_module(name)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_file_asks_what_kind_of_method_it_holds() -> None:
    """Methods are asked by their fields, never by their class, outside the plan."""
    classes = {"Method", *(method.__name__ for method in METHODS.values())}
    for path in FILES:
        if home(path) == "plan":
            continue
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
                named = {ast.unparse(part).rpartition(".")[2] for part in ast.walk(node.args[1])}
                assert not named & classes, f"{path}: {ast.unparse(node)}"
