"""Where the rows of a training run come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from flashu.errors import FlashUError
from flashu.models.batches import TaskRows
from flashu.models.registry import family
from flashu.scenes.world import WORLDS
from flashu.training.records import Records, of_packed, read
from flashu.training.scenes.data import Batcher, build_pool
from flashu.training.settings import TrainSettings

TASKS = {"t2i": "draw", "mmu": "answer"}
"""What the scenes call the tasks."""
Batches = Callable[[int], list[TaskRows]]


def source(settings: TrainSettings, model: Any) -> Batches:
    """The batches that settings ask for."""
    data = dict(settings.data)
    kind = data.pop("kind", None)
    if kind == "records":
        if data.keys() != {"path"}:
            raise FlashUError(f"data of kind records has a path, not {sorted(data)}")
        return Records(read(data["path"]), settings.rows, settings.weights, model.spec.codes, settings.seed)
    if kind == "scenes":
        unknown = sorted(data.keys() - {"world", "scenes", "cache"})
        if unknown:
            raise FlashUError(f"data of kind scenes has world, scenes and cache, not {unknown}")
        return Scenes(model, settings.rows, settings.weights, settings.seed, **data)
    raise FlashUError(f"data must be of kind records or scenes, not {kind!r}")


class Scenes:
    """Batches of procedural scenes, for the embedded model of a world. ``scenes`` in a pool, whose codes are kept in
    the file ``cache``; ``codec``: what makes them, default the model's own. Another ``pool_seed`` makes
    other scenes."""

    def __init__(
        self,
        model: Any,
        rows: Mapping[str, int],
        weights: Mapping[str, float] | None = None,
        seed: int = 0,
        world: str = "scenes",
        scenes: int = 8000,
        cache: str | None = None,
        codec: Any = None,
        pool_seed: int = 2,
    ) -> None:
        if world not in WORLDS:
            raise FlashUError(f"there is no world {world!r}: known are {', '.join(WORLDS)}")
        if unknown := sorted(set(rows) - TASKS.keys()):
            raise FlashUError(f"scenes have rows of {', '.join(TASKS)}, not of {', '.join(unknown)}")
        own = family(model.spec.family)
        network = None if own.trainer is None else own.trainer(WORLDS[world], seed)
        if network is None or not hasattr(network, "packed"):
            raise FlashUError(f"{own.title} rows of scenes are not made here")
        self._network, self._rows, self._weights, self._seed = network, rows, weights or {}, seed
        codec = model.processor.vae if codec is None else codec
        self._codes = model.spec.codes
        pool = build_pool(
            getattr(codec, "module", codec), scenes, None if cache is None else Path(cache), seed=pool_seed,
            world=WORLDS[world],
        )  # fmt: skip
        self._batcher = Batcher(pool, network.tokenizer, seed, WORLDS[world])
        self.pool = pool

    def __call__(self, number: int) -> list[TaskRows]:
        self._batcher.reseed(self._seed * 1_000_003 + number)
        torch.manual_seed(self._seed * 1_000_003 + number)
        batch = []
        for task, count in self._rows.items():
            examples = self._batcher.examples(TASKS[task], count)
            packed = self._network.packed(examples, self._batcher.pool)
            batch.append(of_packed(task, packed, self._weights.get(task, 1.0), self._codes, task == "t2i"))
        return batch
