"""Official benchmarks on Show-o: the settings of the authors' scripts, beside the original program."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flashu.evaluation.official import GenEval2
from flashu.evaluation.official_run import evaluate
from flashu.inference.engine import Engine
from tests.models.showo.golden.recorded import processor, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:this model does not know")


def test_drawing(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"prompt": "w3 w4"}\n')
    asked = GenEval2.read(tmp_path / "data.jsonl")
    opened = Engine(tiny_model(), processor())
    summary = evaluate(opened, asked, tmp_path / "out", model="tiny", steps=3, baseline="original")
    assert (summary.images, summary.forwards, summary.baseline) == (1, 3, "original")
    guidance = json.loads((tmp_path / "out" / "manifest.json").read_text())["settings"]["guidance"]
    assert guidance == opened.layout.defaults.guidance
