"""Training data whose rows are written already: tokens of text and codes of images, so that no image is encoded twice.

A record is {"task": ..., "ids": [...], "targets": [...]} with as many targets as ids: the id that the output at each
token is to predict, -100 = none. "block": [start, stop] of tokens that all of them see; the rest is causal.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from flashu.errors import FlashUError
from flashu.models.batches import TaskRows
from flashu.models.training import IGNORED, Packed


def read(path: str | Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file, of a folder of WebDataset shards (.tar of .json members) or JSON lines, or of a
    folder that `datasets` saved."""
    path = Path(path).expanduser()
    if not path.exists():
        raise FlashUError(f"there is no training data at {path}")
    if path.is_dir() and (path / "dataset_info.json").exists():
        records: list[Any] = list(_saved(path))
    else:
        files = [path] if path.is_file() else sorted([*path.glob("*.tar"), *path.glob("*.jsonl")])
        records = [record for file in files for record in _file(file)]
    if not records:
        raise FlashUError(f"{path} holds no records: give JSON lines, WebDataset shards or a saved dataset")
    for number, record in enumerate(records):
        _check(record, f"record {number} of {path}")
    return records


def _file(path: Path) -> Iterator[Any]:
    if path.suffix == ".tar":
        with tarfile.open(path) as shard:
            for member in shard:
                if member.isfile() and member.name.endswith(".json"):
                    file = shard.extractfile(member)
                    assert file is not None
                    yield json.loads(file.read())
        return
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if line.strip():
                yield json.loads(line)


def _saved(path: Path) -> Iterator[Any]:
    try:
        from datasets import load_from_disk
    except ImportError as error:
        raise FlashUError(
            f'{path} is a saved dataset: pip install ".[train]" in a clone of flashu to read it'
        ) from error
    yield from load_from_disk(str(path))


def _check(record: Any, where: str) -> None:
    if not isinstance(record, Mapping) or not {"task", "ids", "targets"} <= record.keys():
        raise FlashUError(f"{where} must have task, ids and targets")
    if not record["ids"] or len(record["ids"]) != len(record["targets"]):
        raise FlashUError(f"{where} has {len(record['ids'])} ids and {len(record['targets'])} targets: one for each")
    block = record.get("block")
    if block is not None and not (len(block) == 2 and 0 <= block[0] < block[1] <= len(record["ids"])):
        raise FlashUError(f"{where} has the block {block}: give its start and stop")


def rows_of(
    records: Sequence[Mapping[str, Any]], weight: float = 1.0, codes: tuple[int, int] | None = None
) -> TaskRows:
    """Rows of one task, right-padded to the longest. ``codes``: range of the vocabulary that is an image's."""
    width = max(len(r["ids"]) for r in records)
    shape = (len(records), width)
    ids, targets = torch.zeros(shape, dtype=torch.long), torch.full(shape, IGNORED)
    valid = torch.zeros(shape, dtype=torch.bool)
    sees = torch.arange(width).repeat(len(records), 1)
    for n, record in enumerate(records):
        count = len(record["ids"])
        ids[n, :count] = torch.tensor(record["ids"])
        targets[n, :count] = torch.tensor(record["targets"])
        valid[n, :count] = True
        if (block := record.get("block")) is not None:
            sees[n, block[0] : block[1]] = block[1] - 1
    mask: Any = "causal"
    if any(record.get("block") is not None for record in records):
        seen = (torch.arange(width) <= sees[..., None]) & valid[:, None]
        mask = (seen | torch.eye(width, dtype=torch.bool))[:, None]
    visual = None if codes is None else (ids >= codes[0]) & (ids < codes[1])
    position = torch.arange(width).expand(shape)
    return TaskRows(records[0]["task"], ids, position, mask, valid, targets, weight, visual=visual)


def of_packed(
    task: str, packed: Packed, weight: float = 1.0, codes: tuple[int, int] | None = None, drawn: bool = False
) -> TaskRows:
    """Rows that were packed for `training.scenes`. ``codes``: range of the vocabulary that is an image's; ``drawn``:
    the targets are among them."""
    mask = packed.mask[:, 0]
    valid = ~((mask.sum(-1) == 1) & (mask.sum(-2) == 1))  # what sees and is seen by itself alone is padding
    visual = None if codes is None else (packed.ids >= codes[0]) & (packed.ids < codes[1])
    own = codes if drawn else None
    return TaskRows(
        task, packed.ids, packed.position, packed.mask, valid, packed.targets, weight, own, visual,
        (packed.ids.shape[1],) * len(packed.ids),
    )  # fmt: skip


class Records:
    """Batches of records, the same for the same step, whatever was before. ``rows``: of each task in a batch."""

    def __init__(
        self,
        records: Sequence[Mapping[str, Any]],
        rows: Mapping[str, int],
        weights: Mapping[str, float] | None = None,
        codes: tuple[int, int] | None = None,
        seed: int = 0,
    ) -> None:
        self._by_task: dict[str, list[Mapping[str, Any]]] = {}
        for record in records:
            self._by_task.setdefault(record["task"], []).append(record)
        if missing := sorted(set(rows) - self._by_task.keys()):
            raise FlashUError(f"the data has no rows of {', '.join(missing)}; it has {', '.join(self._by_task)}")
        self._rows, self._weights, self._codes, self._seed = rows, weights or {}, codes, seed
        self._orders: dict[str, tuple[int, list[int]]] = {}

    def __call__(self, number: int) -> list[TaskRows]:
        """Batch ``number``: each task's records are gone through in a new order every epoch."""
        batch = []
        for task, count in self._rows.items():
            own = self._by_task[task]
            chosen = []
            for n in range(number * count, (number + 1) * count):
                epoch, at = divmod(n, len(own))
                chosen.append(own[self._order(task, epoch)[at]])
            batch.append(rows_of(chosen, self._weights.get(task, 1.0), self._codes))
        return batch

    def _order(self, task: str, epoch: int) -> list[int]:
        known = self._orders.get(task)
        if known is None or known[0] != epoch:
            generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
            known = epoch, torch.randperm(len(self._by_task[task]), generator=generator).tolist()
            self._orders[task] = known
        return known[1]
