"""Official benchmarks on BAGEL: the authors' settings, edits alone and in turn, beside the original program."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from flashu.evaluation.official import GenEval2
from flashu.evaluation.official_edits import ImgEdit
from flashu.evaluation.official_run import evaluate
from tests.models.bagel.golden.engines import engine


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "pictures/0.png")
    return tmp_path / "pictures"


def edits(folder: Path, **entry: str) -> ImgEdit:
    (folder / "edits.json").write_text(json.dumps({"1": {"id": "0.png", **entry}}))
    return ImgEdit.read(folder / "edits.json", folder)


def settings(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())["settings"]


def test_edits(pictures: Path, tmp_path: Path) -> None:
    opened, out = engine(), tmp_path / "out"
    summary = evaluate(opened, edits(pictures, prompt="5,7"), out, model="tiny", steps=3, baseline="original")
    assert (summary.images, summary.baseline) == (1, "original")
    assert summary.speedup is not None
    assert settings(out) == {"steps": 3, "renorm": "text_channel", "interval": [0.0, 1.0]}
    assert (out / "1.png").is_file()


def test_edits_in_turn(pictures: Path, tmp_path: Path) -> None:
    opened, out = engine(), tmp_path / "out"
    asked = edits(pictures, turn1="5,7", turn2="9")
    summary = evaluate(opened, asked, out, model="tiny", steps=3, guidance=2.0, baseline="original")
    assert summary.images == 2
    assert settings(out)["text_guidance"] == 2.0
    assert sorted(f.name for f in (out / "1").iterdir()) == ["turn1.png", "turn2.png"]


def test_drawing(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"prompt": "5,7"}\n')
    out = tmp_path / "out"
    summary = evaluate(
        engine(), GenEval2.read(tmp_path / "data.jsonl"), out, model="tiny", steps=3, baseline="original"
    )
    assert (summary.images, summary.baseline) == (1, "original")
