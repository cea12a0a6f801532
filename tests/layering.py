"""Which package of flashu stands on which floor, and who imports whom (`test_layering`, docs/floors.py)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "src" / "flashu"
# From the ground up. A file may import its own package, and any on a floor below.
FLOORS = (
    {"errors"},
    {"plan", "scenes"},
    {"models"},
    {"runtime"},
    {"inference"},
    {"interfaces"},
    {"families"},  # the folders in models
    {"evaluation", "training"},
    {"batch", "bench", "studies", "demo", "server"},
    {"top"},
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
TOP = {"__init__", "cli", "__main__"}
PUBLIC = PACKAGE / "__init__.py"
"""It gives families' classes their public names."""
FILES = sorted(PACKAGE.rglob("*.py"))


def package_of(*parts: str) -> str:
    """Where on the floors a module is: its parts below flashu, () for flashu itself."""
    first, *rest = parts or ("__init__",)
    if first == "models" and rest and (PACKAGE / "models" / rest[0]).is_dir():
        return "families"
    return "top" if first in TOP else first


def home(path: Path) -> str:
    return package_of(*path.relative_to(PACKAGE).with_suffix("").parts)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[tuple[str, ...]]:
    """The parts of every name that a file imports, wherever in the file."""
    here = ("flashu", *path.relative_to(PACKAGE).parts)
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = (*here[: -node.level], *filter(None, [node.module])) if node.level else (node.module or "",)
            yield from (tuple(f"{'.'.join(base)}.{alias.name}".split(".")) for alias in node.names)


def modules(path: Path) -> Iterator[tuple[str, ...]]:
    """The parts below flashu of what a file imports of it: () for what flashu itself holds."""
    for first, *rest in imports(path):
        if first == "flashu":
            there = rest and ((PACKAGE / rest[0]).is_dir() or (PACKAGE / f"{rest[0]}.py").is_file())
            yield tuple(rest) if there else ()


def arrows() -> set[tuple[str, str]]:
    """(package, package it imports)."""
    found = {(home(path), package_of(*parts)) for path in FILES for parts in modules(path)}
    return {(start, end) for start, end in found if start != end}
