"""An official benchmark on Emu3, beside the original program."""

from __future__ import annotations

from pathlib import Path

from flashu.evaluation.official import GenEval2
from flashu.evaluation.official_run import evaluate
from flashu.inference.engine import Engine
from tests.models.emu3.emu3_tiny import processor
from tests.models.emu3.golden.recorded import model, vq


def test_drawing(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"prompt": "w3 w4"}\n')
    asked = GenEval2.read(tmp_path / "data.jsonl")
    summary = evaluate(Engine(model(), processor(vq())), asked, tmp_path / "out", model="tiny", baseline="original")
    assert (summary.images, summary.forwards, summary.baseline) == (1, 24, "original")
    assert summary.speedup is not None
