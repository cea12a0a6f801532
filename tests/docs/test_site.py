"""The site builds without a warning, and nothing is left out of it."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
from mkdocs import config
from mkdocs.commands import build

import flashu
from flashu.plan.methods import METHODS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def test_every_public_name_is_in_the_reference() -> None:
    names = re.findall(r"^::: flashu\.(\w+)$", (DOCS / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(names) == sorted(flashu.__all__)


def test_every_method_has_its_page() -> None:
    assert {page.stem for page in (DOCS / "methods").glob("*.md")} == METHODS.keys()


def test_it_builds_without_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")  # the theme's note on its own future is not about this site
    settings = config.load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), strict=True)
    settings.plugins.on_startup(command="build", dirty=False)
    with caplog.at_level(logging.WARNING, logger="mkdocs"):
        build.build(settings)
    assert not caplog.records
    assert "with_recipe" in (tmp_path / "api" / "index.html").read_text(encoding="utf-8")
