"""Training a draft: updates, checkpoints, a log of what it would save."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flashu.errors import FlashUError
from flashu.inference.engine import Engine
from flashu.inference.speculate import WIDTH, NetworkDrafter
from flashu.models.draft import DraftNetwork, Eagle3, Eagle3Config, MetaConfig, MetaQueries
from flashu.training.draft.answers import Asked
from flashu.training.draft.taught import taught
from flashu.training.draft.unroll import unrolled

log = logging.getLogger("flashu")
STATE, LOG = "state.pt", "log.jsonl"


@dataclass(frozen=True)
class Settings:
    """One training run. The rate rises over ``warmup`` updates, then falls linearly to a twentieth. ``unroll``: tokens
    drafted from every position, of which the n-th counts ``decay`` ** n; ``ce``: weight of the cross-entropy."""

    steps: int = 400
    batch: int = 32
    lr: float = 2e-3
    warmup: int = 20
    unroll: int = 5
    decay: float = 0.8
    ce: float = 0.1
    seed: int = 0
    save_every: int = 50
    limit: int | None = None

    def rate(self, step: int) -> float:
        return self.lr * min(1.0, (step + 1) / self.warmup) * max(0.05, 1 - step / self.steps)


def new_network(
    engine: Engine, kind: str, ids: Sequence[int] | None = None, seed: int = 0, **more: Any
) -> DraftNetwork:
    """An untrained network for an engine's model; ``ids``: the tokens it can draft, None = all. Settings as of its
    config; `FlashUError` for an unknown kind."""
    model = engine.model
    drafted = None if ids is None else len(ids)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == Eagle3Config.kind:
            network: DraftNetwork = Eagle3(Eagle3Config.of(model, drafted, **more), ids).start(model)
        elif kind == MetaConfig.kind:
            network = MetaQueries(MetaConfig.of(model, drafted, **more), model, ids)
        else:
            raise FlashUError(f"there is no draft of kind {kind!r} to train: give eagle3 or meta_queries")
    return network.to(model.device, torch.float32)


class DraftTrainer:
    """A network, its optimizer, and the next update's number: all that a checkpoint holds."""

    def __init__(
        self,
        engine: Engine,
        network: DraftNetwork,
        asked: Sequence[Asked],
        answers: Sequence[Sequence[int]],
        settings: Settings,
    ) -> None:
        if not asked or len(asked) != len(answers):
            raise FlashUError(f"{len(answers)} answers to {len(asked)} questions: there is nothing to learn from")
        self.engine, self.network, self.settings = engine, network, settings
        self.asked, self.answers, self.step = asked, answers, 0
        self.trained = [p for p in network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=settings.lr, betas=(0.9, 0.95), weight_decay=0.01)

    def members(self, step: int) -> list[int]:
        """The questions of an update: every one once before any comes again, in an order of the seed."""
        s, count, chosen = self.settings, len(self.asked), list[int]()
        for place in range(step * s.batch, (step + 1) * s.batch):
            epoch, at = divmod(place, count)
            if not chosen or at == 0:
                generator = torch.Generator().manual_seed(s.seed * 1_000_003 + epoch)
                order = torch.randperm(count, generator=generator).tolist()
            chosen.append(order[at])
        return chosen

    def update(self) -> dict[str, Any]:
        """One update; what the log says of it. `FlashUError` if the loss is not finite: nothing is changed then."""
        s, members = self.settings, self.members(self.step)
        rows = taught(
            self.engine,
            self.network.collect,
            [self.asked[n] for n in members],
            [self.answers[n] for n in members],
            s.limit,
        )
        found = unrolled(self.network, self.engine.model, rows, s.unroll, decay=s.decay, ce=s.ce)
        if not math.isfinite(found.loss.item()):
            raise FlashUError(
                f"the loss is not finite at update {self.step}: lower the rate (it was {s.rate(self.step):.2g})"
            )
        found.loss.backward()
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = s.rate(self.step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return {
            "step": self.step,
            "loss": found.loss.item(),
            "kl": list(found.kl),
            "ce": list(found.ce),
            "tried": list(found.tried),
            "right": list(found.right),
        }

    def save(self, file: Path) -> None:
        """Write a checkpoint, then put it in place at once."""
        state = {
            "step": self.step,
            "settings": asdict(self.settings),
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        torch.save(state, file.with_suffix(".new"))
        os.replace(file.with_suffix(".new"), file)

    def load(self, file: Path) -> None:
        """Go on from a checkpoint; `FlashUError` where it is of another run."""
        state = torch.load(file, map_location=self.engine.model.device, weights_only=True)
        if state["settings"] != asdict(self.settings):
            raise FlashUError(f"{file} is of a run with other settings: delete it, or give a new folder")
        try:
            self.network.load_state_dict(state["network"])
        except RuntimeError as error:
            raise FlashUError(f"{file} is of another kind of draft: delete it, or give a new folder") from error
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]


def train(trainer: DraftTrainer, folder: Path, on_log: Callable[[dict[str, Any]], None] = lambda entry: None) -> None:
    """Updates up to the last, from the checkpoint in ``folder`` if one is there. The means of every ``save_every`` go
    into its log and to ``on_log``. A run that diverges keeps its last good checkpoint."""
    settings, state = trainer.settings, folder / STATE
    if state.exists():
        trainer.load(state)
        log.info("goes on at update %d", trainer.step)
    cost = NetworkDrafter(trainer.network, trainer.engine.model).cost
    recent: list[dict[str, Any]] = []
    while trainer.step < settings.steps:
        try:
            recent.append(trainer.update())
        except FlashUError as error:
            kept = f"; the checkpoint in {folder} is of an update before" if state.exists() else ""
            raise FlashUError(f"{error}{kept}") from error
        if trainer.step % settings.save_every == 0 or trainer.step == settings.steps:
            trainer.save(state)
            entry = summary(recent, cost)
            with (folder / LOG).open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(entry) + "\n")
            on_log(entry)
            recent = []


def summary(updates: Sequence[dict[str, Any]], cost: float) -> dict[str, Any]:
    """Means of some updates: ``accepted``, by position, the share of drafted tokens that were right behind right ones
    alone; ``tokens``: expected of a forward that verifies so many; ``speedup``: of the best number, from ``cost`` and
    no measurement."""

    def mean(name: str) -> list[float]:
        return [sum(column) / len(column) for column in zip(*(u[name] for u in updates), strict=True)]

    tried, right = ([sum(c) for c in zip(*(u[name] for u in updates), strict=True)] for name in ("tried", "right"))
    accepted = [r / max(t, 1) for t, r in zip(tried, right, strict=True)]
    chain, tokens, best = 1.0, 1.0, 1.0
    for number, share in enumerate(accepted, start=1):
        chain *= share
        tokens += chain
        best = max(best, tokens / (1 + number * (cost + WIDTH)))
    return {
        "step": updates[-1]["step"],
        "loss": sum(u["loss"] for u in updates) / len(updates),
        "kl": mean("kl"),
        "ce": mean("ce"),
        "accepted": accepted,
        "tokens": tokens,
        "speedup": best,
    }
