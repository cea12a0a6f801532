"""Few-step training: a student's adapter over a frozen teacher, stage by stage, each of which can be resumed."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from flashu.errors import FlashUError
from flashu.inference.engine import Engine
from flashu.models.adapter import Adapter, AdapterFacts
from flashu.models.lora import ScaleRange
from flashu.models.weights import checkpoint_hash
from flashu.runtime.runner import Runner
from flashu.scenes.world import world_of
from flashu.training.distill.batch import Batch
from flashu.training.distill.matching import Fake, matching_loss, own_path
from flashu.training.distill.rows import guided, velocities
from flashu.training.distill.settings import Settings
from flashu.training.scenes.curves import append

STATE, LOSSES = "state.pt", "losses.csv"


class Distillation:
    """A student over an engine's frozen model, its average, its optimizer, and the next update's number: all that a
    checkpoint holds. What an update sees follows from the seed and its number. ``start``: an adapter to go on from, of
    the same rank."""

    def __init__(self, engine: Engine, settings: Settings, start: Path | None = None) -> None:
        model, s = engine.model, settings
        if engine.adapter is not None:
            raise FlashUError("the teacher is the model itself: open it without an adapter")
        if s.edits and not engine.layout.edits:
            raise FlashUError("this model does not edit images: give edits=0")
        if s.precision == "fp32" and model.dtype != torch.float32:
            raise FlashUError(f"precision fp32 needs a model in float32, not in {model.dtype}: load it so, or use bf16")
        world = world_of(engine.layout.defaults.height, engine.layout.defaults.width)
        if world is None:
            raise FlashUError("this model is not of a procedural world: there is nothing to teach its student on")
        self.engine, self.settings, self.world, self.step = engine, s, world, 0
        for parameter in model.parameters():  # type: ignore[attr-defined]
            parameter.requires_grad_(False)
        before = AdapterFacts.read(start).stages if start is not None else []
        scales = dict(zip(model.spec.branches, (ScaleRange(*s.text), ScaleRange(*s.image)), strict=False))
        steps = engine.layout.defaults.steps if s.stage == "cfg" else s.points
        self.facts = AdapterFacts(
            model.spec.family, checkpoint_hash(model), steps, s.shift, scales, "lora", s.rank, s.alpha,
            stages=[*before, asdict(s)],
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(s.seed)
            self.adapter = Adapter(model, self.facts)
        for module in self.adapter.modules.values():
            module.float()  # small updates of bf16 weights are lost
        self.trained = dict(self.adapter.named_parameters())
        if start is not None:
            self._copy(self.trained, dict(Adapter.load(start, model).named_parameters()), start)
        self.student = self.adapter.on(model)
        self.teacher_runner, self.student_runner = Runner(model), Runner(self.student)
        self.average = {name: p.detach().clone() for name, p in self.trained.items()}
        self.fake: Fake | None = None
        if s.stage == "dmdo":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(s.seed + 1)
                self.fake = Fake(model, self.facts, s.fake_lr, s.clip)
        self.optimizer = torch.optim.AdamW(self.trained.values(), lr=s.lr, betas=(0.9, 0.97), weight_decay=0.0)

    # -- what an update sees -------------------------------------------------------------------------------------
    def batch(self, task: str, step: int) -> Batch:
        return Batch.make(self.engine, self.teacher_runner, self.settings, self.world, task, step)

    def losses(self, step: int) -> dict[str, Tensor]:
        """Of an update's rows, by task; those of the fake model, which has learned of them already, have no
        gradient."""
        s, found = self.settings, dict[str, Tensor]()
        with self._precision():
            for task, count in (("draw", s.drawings), ("edit", s.edits)):
                if count:
                    batch = self.batch(task, step)
                    if self.fake is not None:
                        found[task], found[f"{task} fake"] = self._matching(batch, self.fake)
                        continue
                    states, times, target = self._guidance(batch) if s.stage == "cfg" else self._segment(batch)
                    velocity = velocities(self.student_runner, batch.rows, states, times, scales=batch.scales)
                    found[task] = (velocity.float() - target).square().mean()
        return found

    def _matching(self, batch: Batch, fake: Fake) -> tuple[Tensor, Tensor]:
        """The student's loss, and the fake model's on the student's own drawings before it."""
        s = self.settings
        path = own_path(self.student_runner, batch, s.points)
        known = torch.stack([fake.learn(batch, path, batch.times(s.shift)) for _ in range(s.fake_updates)]).mean()
        which = batch.rng.integers(s.points, size=len(batch.rows))
        runners = self.student_runner, self.teacher_runner, fake.runner
        return matching_loss(*runners, batch, path, which, batch.times(s.shift)), known

    def _guidance(self, batch: Batch) -> tuple[Tensor, list[float], Tensor]:
        """States, times and the teacher's guided velocities there."""
        times = batch.times(self.settings.shift)
        states = batch.at(times)
        return states, times.tolist(), guided(self.teacher_runner, batch.rows, states, times.tolist(), batch.scales)

    def _segment(self, batch: Batch) -> tuple[Tensor, list[float], Tensor]:
        """States at the starts of segments, the times there, and the mean velocities of the teacher over them."""
        s = self.settings
        grid = np.array(batch.rows[0].times(s.points))
        which = batch.rng.integers(s.points, size=len(batch.rows))
        start, size = grid[which], grid[which + 1] - grid[which]
        first = state = batch.at(start)
        dt = torch.from_numpy(size / s.substeps).to(state)[:, None, None, None]
        for n in range(s.substeps):
            times = (start + size * n / s.substeps).tolist()
            state = state + dt * guided(self.teacher_runner, batch.rows, state, times, batch.scales)
        return first, start.tolist(), (state - first) / (dt * s.substeps)

    @contextmanager
    def _precision(self) -> Iterator[None]:
        """Attention of so few tokens is quicker as plain products, on a CPU."""
        device = self.engine.model.device.type
        kernels = [SDPBackend.MATH] if device == "cpu" else [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
        with (
            torch.autocast(device, torch.bfloat16, enabled=self.settings.precision == "bf16"),
            sdpa_kernel([*kernels, SDPBackend.MATH]),
        ):
            yield

    def update(self) -> dict[str, float]:
        """One update; its losses by name. `FlashUError` if one is not finite: nothing is changed then."""
        s, losses = self.settings, self.losses(self.step)
        total = torch.stack([loss for loss in losses.values() if loss.requires_grad]).sum()
        if not all(math.isfinite(loss.item()) for loss in losses.values()):
            raise FlashUError(
                f"the loss is not finite at update {self.step}: lower lr (it was {s.rate(self.step):.2g})"
            )
        total.backward()
        nn.utils.clip_grad_norm_(self.trained.values(), s.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = s.rate(self.step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        decay = min(s.ema, self.step / (self.step + 10))
        current = [self.trained[name].detach() for name in self.average]
        torch._foreach_lerp_(list(self.average.values()), current, 1 - decay)
        return {"step": self.step} | {name: value.item() for name, value in losses.items()}

    # -- what it leaves ------------------------------------------------------------------------------------------
    def save(self, file: Path) -> None:
        """Write a checkpoint, then put it in place at once."""
        state: dict[str, Any] = {"step": self.step, "settings": self._identity(), "average": self.average}
        state |= {"weights": {name: p.detach() for name, p in self.trained.items()}}
        state |= {"optimizer": self.optimizer.state_dict()}
        if self.fake is not None:
            state["fake"] = self.fake.state_dict()
        torch.save(state, file.with_suffix(".new"))
        os.replace(file.with_suffix(".new"), file)

    def load(self, file: Path) -> None:
        """Go on from a checkpoint; `FlashUError` where it is of another run."""
        state = torch.load(file, map_location=self.engine.model.device, weights_only=True)
        if state["settings"] != self._identity():
            raise FlashUError(f"{file} is of another model or other settings: delete it, or give a new folder")
        self._copy(self.trained, state["weights"], file)
        self._copy(self.average, state["average"], file)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.fake is not None:
            self.fake.load_state_dict(state["fake"])
        self.step = state["step"]

    def averaged(self) -> Adapter:
        """The student so far, its average, in bf16."""
        adapter = Adapter(self.engine.model, self.facts)
        self._copy(dict(adapter.named_parameters()), self.average, "the average")
        for module in adapter.modules.values():
            module.to(torch.bfloat16)
        return adapter

    @torch.no_grad()
    def _copy(self, to: dict[str, Any], values: dict[str, Any], where: object) -> None:
        if any(values[name].shape != to[name].shape for name in to):
            raise FlashUError(f"{where} is of another rank: give the rank that it was trained with")
        for name, value in to.items():
            value.copy_(values[name])

    def _identity(self) -> str:
        own = asdict(self.facts)
        own["stages"] = [stage | {"save_every": 0} for stage in own["stages"]]
        return json.dumps(own, sort_keys=True)


def train(trainer: Distillation, folder: Path, on_log: Callable[[dict[str, float]], None] = lambda entry: None) -> None:
    """Updates up to the last, from the checkpoint in ``folder`` if one is there, then the adapter. The means of every
    ``save_every`` go into its log and to ``on_log``. A run that diverges keeps its last good checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    settings, state = trainer.settings, folder / STATE
    if state.exists():
        trainer.load(state)
    recent: list[dict[str, float]] = []
    while trainer.step < settings.steps:
        try:
            recent.append(trainer.update())
        except FlashUError as error:
            kept = f"; the checkpoint in {folder} is of an update before" if state.exists() else ""
            raise FlashUError(f"{error}{kept}") from error
        if trainer.step % settings.save_every == 0 or trainer.step == settings.steps:
            trainer.save(state)
            entry = {name: sum(u[name] for u in recent) / len(recent) for name in recent[0]} | {"step": trainer.step}
            append(folder / LOSSES, entry)
            on_log(entry)
            recent = []
    trainer.averaged().save(folder)
