"""Is training cheaper with UniMoD, at equal quality? Arms from one dense checkpoint, paired by the order of the data.

Every arm and seed is one file of results, so an interrupted study goes on where it stopped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flashu.errors import FlashUError
from flashu.evaluation.files import write_json
from flashu.evaluation.flops import FlopClock, counting
from flashu.evaluation.machine import conditions
from flashu.evaluation.timing import clock_of, time_in_turns
from flashu.models.batches import TaskRows
from flashu.models.weights import checkpoint_hash
from flashu.studies.unimod import work
from flashu.studies.unimod.arms import Arm, arms, to_dict, typical
from flashu.training.mod.arank import ARank, arank
from flashu.training.mod.method import RoutedTraining

Batches = Callable[[int], list[TaskRows]]
Scored = Callable[[RoutedTraining], Mapping[str, float]]
HELD_OUT = 1_000_000_007
"""Number of the first batch that nothing is trained on."""


@dataclass(frozen=True)
class Sizes:
    """``updates`` of each arm, ``seeds`` of each, ``held_out`` batches to measure losses on, every ``every`` updates;
    ``rounds`` of timing; ``ranked`` batches for ARank."""

    updates: int = 200
    seeds: int = 3
    held_out: int = 4
    every: int = 50
    rounds: int = 7
    ranked: int = 1
    lr: float = 3e-4


class Study:
    """``model``: the dense checkpoint, which is left as it is. ``held``: batches of other scenes than those trained on.
    ``scored``: benchmark scores of a trained arm, by name."""

    def __init__(
        self,
        model: Any,
        batches: Batches,
        held: Batches,
        folder: Path,
        sizes: Sizes,
        scored: Scored | None = None,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.model, self.batches, self.folder, self.sizes = model, batches, folder, sizes
        self.scored, self.log = scored, log
        self.held = [held(HELD_OUT + n) for n in range(sizes.held_out)]
        self.about = {
            "model": checkpoint_hash(model),
            "sizes": sizes.__dict__,
            "machine": conditions(model.device),
        }
        folder.mkdir(parents=True, exist_ok=True)
        self.ranks = self._ranks()
        self.arms = arms(model.spec, typical(self.held[0]), self.ranks)

    def run(self, names: Sequence[str]) -> None:
        """Measure these arms, and those of them that are not yet."""
        if unknown := sorted(set(names) - self.arms.keys()):
            raise FlashUError(f"there is no arm {', '.join(unknown)}; there are {', '.join(self.arms)}")
        write_json(self.folder / "about.json", self.about | {"table": work.table()})
        for seed in range(self.sizes.seeds):
            for name in names:
                path = self.folder / f"{name}-{seed}.json"
                if path.exists():
                    if json.loads(path.read_text())["sizes"] != self.sizes.__dict__:
                        raise FlashUError(f"{path} is of another study: give another folder, or delete it")
                    continue
                self.log(f"{name}, seed {seed}")
                write_json(path, self.trained(self.arms[name], seed))
        if not (self.folder / "time.json").exists():
            self.log("seconds per update")
            write_json(self.folder / "time.json", self.timed(names))

    # -- one arm -------------------------------------------------------------------------------------------------
    def trained(self, arm: Arm, seed: int) -> dict[str, Any]:
        """Train an arm; its losses over updates and CPU seconds, its work, what its routers keep."""
        training, optimizer = self._begin(arm, seed)
        sizes = self.sizes
        curve = [{"update": 0, "cpu": 0.0, **self._held_losses(training)}]
        spent = flops = 0.0
        for update in range(sizes.updates):
            batch = self.batches(seed * 10_000_000 + update)
            torch.manual_seed(seed * 1_000_003 + update)
            if update == 0:
                clock = FlopClock()
                with counting(clock):
                    training.losses(batch)
                flops = 3 * clock.now()  # backward is twice the forward
                torch.manual_seed(seed * 1_000_003 + update)
            began = time.process_time()
            self._update(training, optimizer, batch)
            spent += time.process_time() - began
            if (update + 1) % sizes.every == 0 or update + 1 == sizes.updates:
                curve.append({"update": update + 1, "cpu": spent, **self._held_losses(training)})
        return {
            "arm": to_dict(arm),
            "seed": seed,
            "sizes": sizes.__dict__,
            "curve": curve,
            "flops": flops,
            "kept": self._kept(training),
            "threshold": self._threshold(training),
            "scores": dict(self.scored(training)) if self.scored is not None else {},
        }

    def _begin(self, arm: Arm, seed: int) -> tuple[RoutedTraining, torch.optim.Optimizer]:
        model = deepcopy(self.model).train().requires_grad_(True)
        training = RoutedTraining(model, arm.config, seed=seed, **arm.savings.__dict__)
        parameters = [*model.parameters(), *training.routers.parameters()]
        return training, torch.optim.AdamW(parameters, lr=self.sizes.lr, weight_decay=0.0)

    def _update(self, training: RoutedTraining, optimizer: torch.optim.Optimizer, batch: list[TaskRows]) -> None:
        training.total(training.losses(batch)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def _held_losses(self, training: RoutedTraining) -> dict[str, float]:
        sums: dict[str, list[float]] = {}
        for batch in self.held:
            for task, loss in training.losses(batch).tasks.items():
                sums.setdefault(task, []).append(float(loss))
        means = {task: sum(values) / len(values) for task, values in sums.items()}
        return means | {"total": sum(means.values())}

    @torch.no_grad()
    def _kept(self, training: RoutedTraining) -> dict[str, dict[str, float]]:
        """Of each task and layer, the share of each kind of token that is computed: text, an image's background (its
        most frequent code), what else is in an image."""
        counts: dict[tuple[str, str], list[float]] = {}
        for batch in self.held:
            for rows in batch:
                kinds = _kinds(rows)
                # With all logits the rows stay as they are.
                for routed in training.losses([rows], logits=True).routed.get(rows.task, []):
                    for kind, mark in kinds.items():
                        seen = counts.setdefault((f"{rows.task} layer {routed.route.layer}", kind), [0.0, 0.0])
                        seen[0] += float((routed.chosen & mark & rows.valid).sum())
                        seen[1] += float((mark & rows.valid).sum())
        found: dict[str, dict[str, float]] = {}
        for (where, kind), (kept, all_) in counts.items():
            if all_:
                found.setdefault(where, {})[kind] = kept / all_
        return found

    @torch.no_grad()
    def _threshold(self, training: RoutedTraining) -> dict[str, float]:
        """Of each task, how often a probability's side of the threshold is what top-k decides."""
        right: dict[str, list[float]] = {}
        for batch in self.held:
            for task, routed in training.losses(batch).routed.items():
                for one in routed:
                    if one.logits is not None and one.route.threshold is not None:
                        agrees = (one.p >= one.route.threshold) == one.chosen
                        right.setdefault(task, []).append(float(agrees[one.valid].float().mean()))
        return {task: sum(values) / len(values) for task, values in right.items()}

    # -- all of them -----------------------------------------------------------------------------------------------
    def timed(self, names: Sequence[str]) -> dict[str, Any]:
        """Seconds of an update, the arms in turns in one process."""
        calls = {}
        for name in names:
            training, optimizer = self._begin(self.arms[name], 0)
            calls[name] = lambda n, t=training, o=optimizer: self._update(t, o, self.batches(n))
        spreads = time_in_turns(calls, self.sizes.rounds, clock_of(self.model.device))
        return {name: {"median": s.median, "low": s.low, "high": s.high} for name, s in spreads.items()}

    def _ranks(self) -> dict[str, ARank]:
        path = self.folder / "arank.pt"
        if path.exists():
            saved = torch.load(path, weights_only=True)
            return {task: ARank(*values) for task, values in saved.items()}
        rows = [r for batch in self.held[: self.sizes.ranked] for r in batch]
        model = deepcopy(self.model).eval()
        found = arank(model, rows)
        torch.save({t: (a.ranks, a.effective, a.length, a.nearest) for t, a in found.items()}, path)
        return found


def _kinds(rows: TaskRows) -> dict[str, Tensor]:
    """bool [B, S] by kind of token."""
    if rows.visual is None or rows.tokens.is_floating_point():
        return {"token": rows.valid}
    codes = rows.tokens[rows.visual]
    usual = codes.mode().values if len(codes) else rows.tokens.new_tensor(-1)
    background = rows.visual & (rows.tokens == usual)
    return {"text": rows.valid & ~rows.visual, "background": background, "object": rows.visual & ~background}
