"""Every example runs, and so does every Python block in the documentation that needs no checkpoint."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NEEDS = "<!-- needs: checkpoint -->"
BLOCK = re.compile(rf"^(?P<needs>{re.escape(NEEDS)}\n+)?```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    line: int
    code: str
    runs: bool


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = BLOCK.finditer(text)
    return [Block(text[: m.start("code")].count("\n"), m["code"], m["needs"] is None) for m in found]


WITH_CODE = [page for page in PAGES if blocks(page)]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that an example writes go to a folder of their own."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [str(path), "4"])
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_of_a_page(page: Path) -> None:
    """In order and in one namespace, as a reader would type them."""
    names: dict[str, object] = {"__name__": "page"}
    for block in blocks(page):
        code = compile("\n" * block.line + block.code, str(page), "exec")
        if block.runs:
            exec(code, names)


def test_every_block_is_found() -> None:
    """No block escapes by its indentation or by how its fence is written."""
    for page in PAGES:
        fences = re.findall(r"^\s*```+ *(?:python|py)\b.*$", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert len(fences) == len(blocks(page)), page


def test_there_is_something_to_run() -> None:
    assert len(EXAMPLES) >= 5
    assert any(block.runs for page in WITH_CODE for block in blocks(page))
