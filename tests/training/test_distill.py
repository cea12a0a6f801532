from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from flashu.cli.main import app
from flashu.errors import FlashUError
from flashu.inference.engine import Engine
from flashu.models.adapter import Adapter, AdapterFacts
from flashu.models.registry import open_model
from flashu.models.weights import checkpoint_hash
from flashu.training.distill.data import drawings, edits
from flashu.training.distill.matching import matching_loss, own_path
from flashu.training.distill.rows import guided, prompted, velocities
from flashu.training.distill.settings import STAGES, Settings
from flashu.training.distill.train import LOSSES, STATE, Distillation, train

SMALL = Settings(steps=4, drawings=3, edits=2, points=3, substeps=2, rank=2, warmup=1, precision="fp32", save_every=2)


@pytest.fixture(scope="module")
def engine() -> Engine:
    model = open_model("scenes-bagel", dtype=torch.float32)
    return Engine(model, model.processor)


def test_an_untrained_student_is_the_unguided_teacher_bit_for_bit(engine: Engine) -> None:
    trainer = Distillation(engine, SMALL)
    for make in (drawings, edits):
        requests, _ = make(trainer.world, 3, np.random.default_rng(0))
        rows = prompted(engine, requests, trainer.teacher_runner)
        latents, times = torch.randn(3, 4, 8, 8), [0.0, 0.3, 0.9]
        with torch.no_grad():
            theirs = velocities(trainer.teacher_runner, rows, latents, times)
            ours = velocities(trainer.student_runner, rows, latents, times, scales=[(2.0, 1.5)] * 3)
        assert torch.equal(theirs, ours)


def test_the_teacher_is_guided_as_the_engine_guides(engine: Engine) -> None:
    """One Euler step of the engine is one guided velocity from its noise."""
    trainer = Distillation(engine, SMALL)
    for make, name in ((drawings, "generate"), (edits, "edit")):
        requests, _ = make(trainer.world, 2, np.random.default_rng(1))
        texts, seeds = [r.prompt for r in requests], [r.seed for r in requests]
        if name == "edit":
            drawn = engine.edit([r.images[0] for r in requests], texts, seed=seeds, steps=1, decode=False).latents
        else:
            drawn = engine.generate(texts, seed=seeds, steps=1, decode=False).latents
        rows = prompted(engine, requests, trainer.teacher_runner)
        scripts = engine.layout.draw(requests, engine.recipe)
        noise = torch.stack([script[-1].sampler(1, "euler").state for script in scripts])
        scales = [list(row.guidance.scales.values()) for row in rows]
        found = guided(trainer.teacher_runner, rows, noise, [0.0, 0.0], scales)
        torch.testing.assert_close(noise + found, torch.as_tensor(drawn), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stage", STAGES)
def test_only_the_adapter_learns_and_the_base_stays(engine: Engine, stage: str) -> None:
    before = checkpoint_hash(engine.model)
    trainer = Distillation(engine, replace(SMALL, stage=stage))
    losses = trainer.losses(0)
    matching = {"draw fake", "edit fake"} if stage == "dmdo" else set()
    assert set(losses) == {"draw", "edit"} | matching
    assert {name for name, loss in losses.items() if not loss.requires_grad} == matching
    torch.stack([losses["draw"], losses["edit"]]).sum().backward()
    got = {n for n, p in trainer.student.named_parameters() if p.grad is not None}
    assert got == set(trainer.trained)
    assert all("_moe_gen" in name or name.startswith("scale_embedder.") for name in got)
    if trainer.fake is not None:
        assert all(p.grad is None for p in trainer.fake.trained.values())
        assert any(bool(p.any()) for name, p in trainer.fake.trained.items() if "lora_B" in name)
        assert not {*map(id, trainer.fake.trained.values())} & {*map(id, trainer.trained.values())}
    trainer.optimizer.zero_grad(set_to_none=True)
    trainer.update()
    assert all(p.grad is None and not p.requires_grad for p in engine.model.parameters())
    assert checkpoint_hash(engine.model) == before


@pytest.mark.parametrize("stage", STAGES)
def test_a_resumed_run_ends_as_one_that_was_not_stopped(engine: Engine, tmp_path: Path, stage: str) -> None:
    settings = replace(SMALL, stage=stage)
    whole = Distillation(engine, settings)
    train(whole, tmp_path / "whole")
    stopped = Distillation(engine, settings)
    stopped.update()
    stopped.update()
    (tmp_path / "parts").mkdir()
    stopped.save(tmp_path / "parts" / STATE)
    resumed = Distillation(engine, settings)
    train(resumed, tmp_path / "parts")
    assert all(torch.equal(resumed.trained[name], p) for name, p in whole.trained.items())
    assert all(torch.equal(resumed.average[name], p) for name, p in whole.average.items())
    assert (tmp_path / "parts" / LOSSES).read_text().startswith("step,draw,")
    with pytest.raises(FlashUError, match="other settings"):
        train(Distillation(engine, replace(settings, steps=5)), tmp_path / "parts")


def test_stages_go_on_from_each_other_and_draw(engine: Engine, tmp_path: Path) -> None:
    train(Distillation(engine, replace(SMALL, steps=1)), tmp_path / "cfg")
    second = Distillation(engine, replace(SMALL, steps=1, stage="regression"), tmp_path / "cfg")
    saved = Adapter.load(tmp_path / "cfg", engine.model)
    assert all(torch.equal(second.trained[name], p) for name, p in saved.named_parameters())
    train(second, tmp_path / "few")
    few = engine.with_recipe(adapter=tmp_path / "few")
    drawn = few.generate("a red circle", decode=False)
    assert [t.plan.branches for t in drawn.trace] == [("main",)] * SMALL.points
    assert [stage["stage"] for stage in few.adapter.facts.stages] == ["cfg", "regression"]
    with pytest.raises(FlashUError, match="another rank"):
        Distillation(engine, replace(SMALL, rank=3), tmp_path / "cfg")


def test_matching_moves_the_picture_from_what_is_drawn_to_what_should_be(engine: Engine) -> None:
    """The gradient at the student's picture is (fake - teacher) / mean |picture - teacher|, and nothing where both
    models agree."""
    trainer = Distillation(engine, replace(SMALL, stage="dmdo"))
    batch = trainer.batch("draw", 0)
    path = own_path(trainer.student_runner, batch, SMALL.points)
    few = trainer.engine.with_recipe(adapter=trainer.adapter)
    assert few.layout.defaults.steps == SMALL.points
    which, times = np.array([0, 1, 2]), np.array([0.2, 0.5, 0.8])
    unguided = replace(batch, scales=[(1.0, 1.0)] * 3)
    runners = trainer.student_runner, trainer.teacher_runner, trainer.fake.runner
    # Untrained, the fake model is the unguided teacher.
    assert matching_loss(*runners, unguided, path, which, times).item() < 1e-8
    assert matching_loss(*runners, replace(batch, scales=[(3.0, 1.0)] * 3), path, which, times).item() > 1e-4


def test_one_substep_is_the_guided_velocity(engine: Engine) -> None:
    """A segment walked in one step of the teacher has its velocity as mean."""
    trainer = Distillation(engine, replace(SMALL, stage="regression", substeps=1))
    batch = trainer.batch("edit", 0)
    states, times, target = trainer._segment(batch)
    there = guided(trainer.teacher_runner, batch.rows, states, times, batch.scales)
    torch.testing.assert_close(target, there, rtol=1e-4, atol=1e-4)


def test_a_diverging_loss_stops_and_keeps_the_checkpoint(engine: Engine, tmp_path: Path) -> None:
    trainer = Distillation(engine, SMALL)
    trainer.update()
    trainer.save(tmp_path / STATE)
    kept = (tmp_path / STATE).read_bytes()
    with torch.no_grad():
        next(iter(trainer.trained.values())).fill_(float("nan"))
    with pytest.raises(FlashUError, match="not finite"):
        trainer.update()
    assert (tmp_path / STATE).read_bytes() == kept


def test_no_rows_are_refused() -> None:
    with pytest.raises(FlashUError, match="needs rows"):
        Settings(drawings=0, edits=0)


def test_the_command_runs_both_stages(tmp_path: Path) -> None:
    small = ["--steps", "1", "--drawings", "2", "--edits", "1", "--substeps", "1", "--rank", "2"]
    words = ["train", "distill", "--model", "scenes-bagel", "--dtype", "float32", "--to", "2", "-o", str(tmp_path)]
    done = CliRunner().invoke(app, [*words, *small])
    assert done.exit_code == 0, done.output
    facts = AdapterFacts.read(tmp_path)
    assert facts.steps == 2
    assert [stage["stage"] for stage in facts.stages] == ["cfg", "regression"]
    assert AdapterFacts.read(tmp_path / "cfg").stages == facts.stages[:1]


def test_a_model_that_does_not_draw_by_flow_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["train", "distill", "--model", "scenes-showo", "--edits", "0", "-o", str(tmp_path)])
    assert done.exit_code != 0
    assert "take no adapters" in done.output
