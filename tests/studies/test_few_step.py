from pathlib import Path

import torch

from flashu.inference.engine import Engine
from flashu.models.adapter import Adapter
from flashu.models.lora import ScaleRange
from flashu.models.registry import open_model
from flashu.scenes import benchmark
from flashu.scenes.detector import detect
from flashu.scenes.world import SCENES
from flashu.studies.few_step import compare, sheet


def test_arms_are_paired_and_counted(tmp_path: Path) -> None:
    """An untrained adapter draws as the unguided teacher does, with the rows of as many steps."""
    model = open_model("scenes-bagel", dtype=torch.float32)
    engine = Engine(model, model.processor)
    scales = {"text": ScaleRange(1, 5), "image": ScaleRange(1, 2.5)}
    Adapter.new(model, steps=4, shift=3.0, guidance=scales, rank=2, alpha=2.0).save(tmp_path)
    found = compare(engine, str(tmp_path), 1, 1)
    by_name = {(r.benchmark, r.arm): r for r in found}
    assert len(by_name) == len(found) == 16
    for suite, cut in (("scenes-dpg", 4), ("scenes-edit", 3)):
        assert by_name[suite, "student"].nfe == by_name[suite, "unguided"].nfe == 4
        assert by_name[suite, "cut"].nfe == cut
        assert by_name[suite, "teacher"].loss is None
        assert by_name[suite, "student"].table == by_name[suite, "unguided"].table
    board = sheet(engine, str(tmp_path), SCENES, 2)
    assert board.size == (2 * (SCENES.size + 4), 9 * (SCENES.size + 4))


def test_the_shipped_adapter_draws_in_six_rows() -> None:
    model = open_model("scenes-bagel", dtype=torch.float32)
    few = Engine(model, model.processor).with_recipe("6-step")
    prompts = benchmark.prompts(benchmark.CATEGORIES[0], 8, 0)
    drawn = few.generate([p.text for p in prompts], seed=list(range(8)))
    assert [sum(trace.rows for trace in traces) for traces in drawn.traces] == [6] * 8
    assert sum(benchmark.judge(p, seen) for p, seen in zip(prompts, detect(drawn.images), strict=True)) >= 7
