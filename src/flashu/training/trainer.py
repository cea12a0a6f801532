"""Trains a model on `accelerate`, with or without routers; stopped at any moment, it goes on with equal losses.

Everything random follows from the seed and the number of the update, so a checkpoint needs no random state.
"""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flashu.errors import FlashUError
from flashu.models.batches import TaskRows
from flashu.training.mod.config import UniModConfig
from flashu.training.mod.method import RoutedTraining
from flashu.training.mod.routers import Routers
from flashu.training.settings import TrainSettings

LATEST, PART = "checkpoint.pt", "checkpoint.part"
LOSSES, BAD = "losses.csv", "bad_batch.pt"


class Step(nn.Module):
    """A model with its routers as one module, whose forward is a batch's losses: what DDP and FSDP wrap."""

    def __init__(self, model: Any, training: RoutedTraining) -> None:
        super().__init__()
        self.model, self.routers = model, training.routers
        self._training = [training]  # not a part of this module

    def forward(self, batch: Sequence[TaskRows]) -> tuple[Tensor, dict[str, Tensor]]:
        """What is minimized, and what it is made of."""
        training = self._training[0]
        losses = training.losses(batch)
        parts = {task: loss.detach() for task, loss in losses.tasks.items()}
        if losses.auxiliary:
            parts["routers"] = losses.auxiliary_sum.detach()
        return training.total(losses), parts


class Trainer:
    """``batches``: number of a batch -> its rows; with several processes, each takes its own numbers."""

    def __init__(
        self,
        model: Any,
        settings: TrainSettings,
        batches: Callable[[int], list[TaskRows]],
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        try:
            from accelerate import Accelerator
        except ImportError as error:
            raise FlashUError('training needs accelerate: pip install ".[train]" in a clone of flashu') from error
        self.settings, self.batches, self.log, self.step = settings, batches, log, 0
        self.output = Path(settings.output)
        data = dict(settings.unimod)
        if "preset" in data:
            data.setdefault("layers", model.spec.layers)
        self.config = UniModConfig.from_dict(data)
        self.accelerator = Accelerator(
            mixed_precision=settings.precision, cpu=model.device.type == "cpu",
            gradient_accumulation_steps=settings.accumulate,
        )  # fmt: skip
        training = RoutedTraining(model, self.config, seed=settings.seed, **settings.exact().__dict__)
        self.model, self.routers = model, training.routers
        groups = [
            {"params": [p for p in model.parameters() if p.requires_grad], "factor": 1.0},
            {"params": list(self.routers.parameters()), "factor": settings.router_lr, "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay)
        self.module, self.optimizer = self.accelerator.prepare(Step(model, training), optimizer)
        self.average = None
        if settings.ema:
            self.average = {name: p.detach().clone() for name, p in model.named_parameters()}
        self._board: Any = None

    # -- the run -----------------------------------------------------------------------------------------------
    def run(self, on_step: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Train to the end, from the latest checkpoint if there is one; then save the model, its average if there is
        one, and the routers."""
        settings = self.settings
        if self.accelerator.is_main_process:
            self.output.mkdir(parents=True, exist_ok=True)
        self.accelerator.wait_for_everyone()
        self.resume()
        self._trim_log()
        self.module.train()
        began = time.monotonic()
        while self.step < settings.steps:
            values = self.update()
            on_step(self.step, settings.steps)
            if self.step % settings.log == 0 or self.step == settings.steps:
                self._record(values | {"seconds": (time.monotonic() - began) / settings.log})
                began = time.monotonic()
            if self.step % settings.checkpoint == 0 or self.step == settings.steps:
                self.save_checkpoint()

    def update(self) -> dict[str, float]:
        """One update; its losses by name."""
        settings, accelerator = self.settings, self.accelerator
        rate = settings.rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.lr * group["factor"] * rate
        sums: dict[str, float] = {}
        for micro in range(settings.accumulate):
            number = (self.step * settings.accumulate + micro) * accelerator.num_processes + accelerator.process_index
            torch.manual_seed(settings.seed * 1_000_003 + number)
            batch = [_on(rows, accelerator.device) for rows in self.batches(number)]
            with accelerator.accumulate(self.module), accelerator.autocast():
                loss, parts = self.module(batch)
                accelerator.backward(loss)
                if not bool(torch.isfinite(loss)):
                    self._stop(batch, loss, parts)
                if accelerator.sync_gradients and settings.clip:
                    accelerator.clip_grad_norm_(self.module.parameters(), settings.clip)
                self.optimizer.step()
                self.optimizer.zero_grad()
            for name, value in ({"loss": loss.detach()} | parts).items():
                sums[name] = sums.get(name, 0.0) + float(value) / settings.accumulate
        self.step += 1
        self._update_average()
        return {"step": self.step, "lr": settings.lr * rate} | sums

    @torch.no_grad()
    def _update_average(self) -> None:
        if self.average is None:
            return
        decay = min(self.settings.ema, self.step / (self.step + 10))
        current = dict(self.model.named_parameters())
        torch._foreach_lerp_(list(self.average.values()), [current[n].detach() for n in self.average], 1 - decay)

    def _stop(self, batch: list[TaskRows], loss: Tensor, parts: dict[str, Tensor]) -> None:
        path = self.output / BAD
        self.output.mkdir(parents=True, exist_ok=True)
        torch.save({"step": self.step, "rows": [vars_of(rows) for rows in batch]}, path)
        found = ", ".join(f"{name} {float(value)}" for name, value in parts.items())
        raise FlashUError(
            f"the loss of update {self.step + 1} is {float(loss.detach())} ({found}): its batch is in {path}; "
            "lower lr, or look for rows that are wrong"
        )

    # -- what it leaves ------------------------------------------------------------------------------------------
    def save_checkpoint(self) -> None:
        """Into the output folder; a crash while it is written leaves the one before."""
        self.accelerator.wait_for_everyone()
        state = {
            "step": self.step,
            "model": self.accelerator.get_state_dict(self.module),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "settings": self._identity(),
        }
        if self.accelerator.is_main_process:
            torch.save(state, self.output / PART)
            with (self.output / PART).open("rb") as file:
                os.fsync(file.fileno())
            os.replace(self.output / PART, self.output / LATEST)

    def resume(self) -> bool:
        """Take over the latest checkpoint; False if there is none. `FlashUError` if it is of another run."""
        path = self.output / LATEST
        if not path.exists():
            return False
        state = torch.load(path, map_location=self.accelerator.device, weights_only=True)
        if state["settings"] != self._identity():
            raise FlashUError(f"{path} is of a run with other settings: give another output folder, or delete it")
        self.accelerator.unwrap_model(self.module).load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average, self.step = state["average"], state["step"]
        self.log(f"resumed at update {self.step}")
        return True

    def _identity(self) -> str:
        """The settings that the losses depend on."""
        own = replace(self.settings, output="", log=1, checkpoint=1, tensorboard=False)
        return json.dumps(own.to_dict(), sort_keys=True, default=str)

    def _record(self, values: dict[str, float]) -> None:
        if not self.accelerator.is_main_process:
            return
        path = self.output / LOSSES
        new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(values))
            if new:
                writer.writeheader()
            writer.writerow({name: repr(value) for name, value in values.items()})
        if self.settings.tensorboard:
            if self._board is None:
                try:
                    from torch.utils.tensorboard import SummaryWriter
                except ImportError as error:
                    raise FlashUError("tensorboard: true needs the tensorboard package") from error
                self._board = SummaryWriter(str(self.output / "tensorboard"))
            for name, value in values.items():
                self._board.add_scalar(name, value, int(values["step"]))
        losses = " ".join(f"{name} {v:.4f}" for name, v in values.items() if name not in ("step", "seconds", "lr"))
        self.log(f"{int(values['step'])} {values['seconds']:.2f} s/update {losses}")

    def _trim_log(self) -> None:
        """Leave out what was logged after the checkpoint: it comes again."""
        path = self.output / LOSSES
        if not path.exists() or not self.accelerator.is_main_process:
            return
        if self.step == 0:
            path.unlink()
            return
        with path.open(encoding="utf-8", newline="") as file:
            lines = file.read().splitlines()
        kept = [line for line in lines[1:] if line.count(",") == lines[0].count(",") and _step(line) <= self.step]
        path.write_text("\n".join([*lines[:1], *kept]) + "\n", encoding="utf-8")

    def save_model(self, save: Callable[[Any, Path, Any], None], processor: Any) -> None:
        """The trained weights (their average, if there is one) as a checkpoint folder, the routers beside them."""
        if not self.accelerator.is_main_process:
            return
        folder = self.output / "model"
        kept = None
        if self.average is not None:
            kept = {name: p.detach().clone() for name, p in self.model.named_parameters()}
            _copy(self.model, self.average)
        if folder.exists():
            shutil.rmtree(folder)
        save(self.model, folder, processor)
        if kept is not None:
            _copy(self.model, kept)
        if self.config.names():
            Routers.save(self.routers, folder)


@torch.no_grad()
def _copy(model: nn.Module, values: dict[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        parameter.copy_(values[name])


def _step(line: str) -> float:
    try:
        return float(line.split(",")[0])
    except ValueError:
        return math.inf


def _on(rows: TaskRows, device: torch.device) -> TaskRows:
    moved: dict[str, Any] = {
        name: value.to(device) for name, value in vars_of(rows).items() if isinstance(value, Tensor)
    }
    return replace(rows, **moved)


def vars_of(rows: TaskRows) -> dict[str, Any]:
    """The fields of rows, as `torch.save` takes them."""
    return {name: getattr(rows, name) for name in (f.name for f in fields(TaskRows))}
