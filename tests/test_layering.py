"""Imports go downwards only, and rooms on one floor do not know each other (docs/design)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "flashu"
# From the ground up. A module may import its own floor's package and anything strictly below.
FLOORS = [
    {"errors"},
    {"plan", "scenes"},
    {"models"},
    {"runtime"},
    {"inference"},
    {"interfaces"},
    {"families"},
    {"evaluation"},
    {"bench"},
    {"studies", "training"},
    {"__init__"},
    {"demo"},
    {"cli"},
]
FLOOR = {name: n for n, names in enumerate(FLOORS) for name in names}
NEIGHBOURS: set[frozenset[str]] = set()
# These two still ask the first family's configuration; they move to `ModelSpec` with the new core.
MOVING = {PACKAGE / "plan" / "cost.py", PACKAGE / "plan" / "explain.py"}
FILES = sorted(set(PACKAGE.rglob("*.py")) - MOVING)


def room(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    if parts[0] == "models" and len(parts) > 2:
        return "families"
    return parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Rooms of flashu that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue  # relative imports stay inside their room here
        found |= {[*name.split("."), "__init__"][1] for name in names if name.split(".")[0] == "flashu"}
    return {name if name in FLOOR else "__init__" for name in found}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    here = room(path)
    for other in imported(path) - {here}:
        below = FLOOR[other] < FLOOR[here]
        beside = frozenset({here, other}) in NEIGHBOURS
        assert below or beside, f"{here} must not import {other}"


def test_the_plan_and_the_methods_import_no_torch() -> None:
    for path in (PACKAGE / "plan").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "torch" for name in names), path.name


def test_no_file_asks_what_kind_of_method_it_holds() -> None:
    """Methods are asked by their fields, never by their class, outside their own folder."""
    methods = {"FFNPrune", "LayerSkip", "HeadCache", "AdaptiveGuidance", "TokenPrune", "Method"}
    for path in FILES:
        if room(path) == "plan":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
                used = {n.id for n in ast.walk(node.args[1]) if isinstance(n, ast.Name)}
                assert not used & methods, f"{path}: isinstance of a method"
