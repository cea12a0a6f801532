"""The study of UniMoD, small: its arms, its counts, that it resumes, and its page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.emu3.golden import recorded as emu3
from tests.training.test_trainer import records
from tests.training.unimod import batch, config, model

import flashu
from flashu.evaluation.flops import FlopClock, counting
from flashu.studies.unimod import report, work
from flashu.studies.unimod.arms import NAMES, arms, typical
from flashu.studies.unimod.study import Sizes, Study
from flashu.training.exact import Savings
from flashu.training.mod import RoutedTraining, UniModConfig
from flashu.training.records import Records

SIZES = Sizes(updates=4, seeds=2, held_out=1, every=2, rounds=2)


def study(folder: Path, **more: Any) -> Study:
    rows = Records(records(16), {"t2i": 2, "mmu": 2}, codes=(20, 160))
    held = Records(records(16)[4:], {"t2i": 2, "mmu": 2}, codes=(20, 160), seed=5)
    return Study(emu3.model(), rows, held, folder, SIZES, **more)


def test_a_study_from_end_to_end(tmp_path: Path) -> None:
    said: list[str] = []
    run = study(tmp_path, log=said.append, scored=lambda training: {"draw": 0.5})
    names = ("dense", "whole", "random", "single-matched", "unimod", "unimod-arank", "fewer-layers")
    run.run(names)
    assert said.count("unimod, seed 1") == 1
    again: list[str] = []
    study(tmp_path, log=again.append).run(names)
    assert not again
    (tmp_path / "unimod-1.json").unlink()
    study(tmp_path, log=again.append).run(names)
    assert again == ["unimod, seed 1"]
    rows = {row["arm"]: row for row in report.summary(tmp_path)}
    assert rows.keys() == set(names)
    assert rows["whole"]["loss"] == pytest.approx(rows["dense"]["loss"], abs=1e-4)
    assert rows["whole"]["flops"] > 1 > rows["unimod"]["flops"]
    assert rows["single-matched"]["flops"] == pytest.approx(rows["unimod"]["flops"], abs=0.05)
    assert rows["fewer-layers"]["flops"] <= rows["unimod"]["flops"] + 0.05
    page = report.page(tmp_path)
    for text in ("Learned routers beat random tokens", "emu3-paper", "background", "95 %"):
        assert text in page
    kept = json.loads((tmp_path / "unimod-0.json").read_text())["kept"]
    assert kept.keys() == {f"{task} layer {n}" for task in ("t2i", "mmu") for n in range(4, 8)}
    assert all(0 <= share <= 1 for shares in kept.values() for share in shares.values())


def test_every_arm_is_there() -> None:
    made = model("showo")
    rows = typical([r for r in batch("showo") if r.task != "lm"])
    known = arms(made.spec, rows, {})
    assert known.keys() == set(NAMES) - {"unimod-arank"}
    target = work.mean(made.spec, rows, known["unimod"].config, exact=True)
    assert work.mean(made.spec, rows, known["single-matched"].config, exact=True) == pytest.approx(target, rel=0.03)


@pytest.mark.parametrize("family", ["showo", "emu3"])
def test_the_formula_is_what_is_counted(family: str) -> None:
    """Whole rows, so that padding is counted too; attention over the whole row, whatever its mask."""
    made, rows = model(family), [r for r in batch(family) if r.task != "lm"]
    for task_config in (UniModConfig(), config(family, "preset")):
        training = RoutedTraining(made, task_config, **Savings.none().__dict__)
        own = [r for r in rows if bool(r.valid.all())] or rows
        clock = FlopClock()
        with torch.no_grad(), counting(clock):
            training.losses(own)
        expected = 0
        for part in own:
            one = work.Row(part.shape[1], part.shape[1], 0)
            keep = task_config.keep.get(part.task, {})
            # Of padding, which is chosen last, nothing is computed.
            shares = {i: min(v, max(part.valid.sum(1).tolist()) / part.shape[1]) for i, v in keep.items()}
            expected += part.shape[0] * work.row(made.spec, one, shares)
        assert clock.now() == pytest.approx(expected, rel=2e-3)


def test_exact_training_saves_what_was_recorded() -> None:
    """Shares of the whole batch's work, recorded with rows one by one: .684 and .614."""
    for family, most in (("showo", 0.70), ("emu3", 0.63)):
        made, rows = model(family), batch(family)
        counts = []
        for savings in (Savings.none(), Savings(waste=0.0)):
            clock = FlopClock()
            with torch.no_grad(), counting(clock):
                RoutedTraining(made, UniModConfig(), **savings.__dict__).losses(rows)
            counts.append(clock.now())
        assert counts[1] / counts[0] < most


def test_what_a_study_refuses(tmp_path: Path) -> None:
    run = study(tmp_path)
    with pytest.raises(flashu.FlashUError, match="there is no arm sparse"):
        run.run(("dense", "sparse"))
    with pytest.raises(flashu.FlashUError, match="no dense arm"):
        report.summary(tmp_path)


def test_layers_are_timed_at_any_size() -> None:
    from dataclasses import replace

    from flashu.studies.unimod.layers import composed, layer_seconds

    for family in ("showo", "emu3"):
        spec = replace(model(family).spec, hidden=64)
        found = layer_seconds(spec, 24, (0.5, 1.0), rows=2, causal=family == "emu3", dtype=torch.float32, rounds=1)
        assert found.keys() == {None, 0.5, 1.0}
        assert composed(found, 4, {2: 0.5, 3: 1.0}) > 0
