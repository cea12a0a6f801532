"""The settings of the authors' scripts for the official benchmarks are the default."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import flashu
from flashu.evaluation.official import DPG, Benchmark, GenEval
from flashu.evaluation.official_run import evaluate
from flashu.plan.recipe import Recipe


class Stop(Exception):
    """The first forward is enough."""


def stop(*_: object) -> None:
    raise Stop


@pytest.mark.parametrize(("kind", "forwards", "guidance"), [("geneval", 99, 7.5), ("dpg", 49, 10.0)])
@pytest.mark.parametrize("reference", [False, True])
def test_the_scripts_settings(
    kind: str, forwards: int, guidance: float, reference: bool, tiny: flashu.ShowO2, tmp_path: Path
) -> None:
    """100 and 50 time points are 99 and 49 forwards, under a reference recipe, too."""
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "a.txt").write_text("w1")
    (tmp_path / "meta.jsonl").write_text('{"prompt": "w1"}')
    benchmark: Benchmark = DPG.read(tmp_path / "prompts") if kind == "dpg" else GenEval.read(tmp_path / "meta.jsonl")
    engine = flashu.Engine(tiny, tiny.processor, Recipe(reference=reference))
    with pytest.raises(Stop):
        evaluate(engine, benchmark, tmp_path / "out", model="tiny", on_step=stop)
    settings = json.loads((tmp_path / "out" / "manifest.json").read_text())["settings"]
    assert (engine.recipe.forwards(settings["steps"]), settings["guidance"]) == (forwards, guidance)
