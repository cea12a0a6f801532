"""Drawing a data set: each item stands in the output once, whatever happens in between."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flashu.batch.shards import Task, Worker, shard_path
from flashu.errors import FlashUError
from flashu.evaluation.ledger import Ledger
from flashu.plan.limits import check_number

LEDGER = ".flashu/ledger.jsonl"
KEY = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Item:
    """One image to draw. ``key``: its name in the shards, of letters, digits, - and _."""

    key: str
    prompt: str
    seed: int


@dataclass(frozen=True)
class Report:
    """Of all shards so far: ``items`` of ``of`` are done, ``failed`` of them could not be drawn (their .json says
    why); ``seconds``: of the workers together."""

    items: int
    of: int
    failed: int
    shards: int
    seconds: float


def generate(
    items: Iterable[str | Mapping[str, Any] | Item],
    out: Path | str,
    *,
    model: str = "scenes",
    recipe: str = "exact",
    dtype: str | None = None,
    device: str | None = None,
    seed: int = 0,
    shard_size: int = 256,
    batch_size: int = 8,
    workers: int = 0,
    gpus_per_worker: float = 0,
    on_shard: Callable[[int, int], object] = lambda done, total: None,
    **settings: Any,
) -> Report:
    """Draw an image of each item into ``out``: WebDataset shards DIR/shard-000000.tar of KEY.png and KEY.json.

    ``items``: prompts, or mappings with a ``prompt`` and maybe a ``key`` and a ``seed``; else the key is the item's
    number and the seed ``seed`` + its number. ``workers``: 0 draws in this process, n with n actors of Ray Data, each
    with ``gpus_per_worker`` GPUs, which must all see ``out``. ``settings``: as of `Engine.generate` (steps, guidance,
    height, width ...). ``on_shard`` gets how many shards are finished, and of how many.

    Run again to resume. An item's shard and batch follow from its number alone, so neither an interruption nor the
    number of workers changes an image. A shard appears at once, complete; one that two workers drew, because the first
    was thought dead, is replaced by its equal. `FlashUError` if ``out`` holds results made another way.
    """
    listed = _listed(items, seed)
    for name, value in (("shard_size", shard_size), ("batch_size", batch_size)):
        if value < 1:
            raise FlashUError(f"{name} must be at least 1, got {value}")
    if workers < 0 or gpus_per_worker < 0:
        raise FlashUError("workers and gpus_per_worker must be at least 0")
    check_number("batch_size", batch_size)
    out = Path(out).resolve()
    given = {name: value for name, value in settings.items() if value is not None}
    tasks = [
        Task(n, tuple(asdict(item) for item in listed[at : at + shard_size]))  # plain values, which any process reads
        for n, at in enumerate(range(0, len(listed), shard_size))
    ]
    run = {
        "items": hashlib.sha256(json.dumps([asdict(item) for item in listed]).encode()).hexdigest()[:16],
        "model": model,
        "recipe": recipe,
        "dtype": dtype,
        "shard_size": shard_size,
        "batch_size": batch_size,
        "settings": given,
    }
    with Ledger(out / LEDGER, run) as ledger:
        todo = [task for task in tasks if not shard_path(out, task.number).exists()]
        for number, record in enumerate(
            _records(todo, out, (model, recipe, dtype, device), batch_size, given, workers, gpus_per_worker), 1
        ):
            ledger.append(str(record["shard"]), record)
            on_shard(len(tasks) - len(todo) + number, len(tasks))
        known = [ledger.values[str(task.number)] for task in tasks if str(task.number) in ledger.values]
    done = [task for task in tasks if shard_path(out, task.number).exists()]
    return Report(
        items=sum(len(task.items) for task in done),
        of=len(listed),
        failed=sum(record["failed"] for record in known),
        shards=len(done),
        seconds=sum(record["seconds"] for record in known),
    )


def _records(
    todo: Sequence[Task],
    out: Path,
    source: tuple[str, str, str | None, str | None],
    batch_size: int,
    settings: Mapping[str, Any],
    workers: int,
    gpus: float,
) -> Iterator[dict[str, Any]]:
    """The records of shards as they are finished, in any order."""
    if not todo:
        return
    arguments = (str(out), source, batch_size, dict(settings))
    if workers == 0:
        worker = Worker(*arguments)
        for task in todo:
            yield worker.draw(task)
        return
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise FlashUError(
            'workers need Ray: pip install ".[ray]" in a clone of flashu, or leave workers out'
        ) from error
    rows = [{"task": json.dumps([task.number, task.items])} for task in todo]
    drawn = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        Worker,
        fn_constructor_args=arguments,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(rows))),
        num_gpus=gpus or None,
    )
    for row in drawn.iter_rows():
        yield json.loads(row["record"])


def _listed(items: Iterable[str | Mapping[str, Any] | Item], seed: int) -> list[Item]:
    found = []
    for number, item in enumerate(items):
        given = {"prompt": item} if isinstance(item, str) else asdict(item) if isinstance(item, Item) else dict(item)
        if unknown := sorted(given.keys() - {"key", "prompt", "seed"}):
            raise FlashUError(f"item {number}: unknown field {unknown[0]!r}: an item has prompt, key and seed")
        one = Item(**{"key": f"{number:09d}", "seed": seed + number, "prompt": ""} | given)
        if not isinstance(one.prompt, str) or not one.prompt.strip():
            raise FlashUError(f"item {number} has no prompt")
        if not isinstance(one.key, str) or not KEY.fullmatch(one.key):
            raise FlashUError(f"item {number}: the key {one.key!r} is not of letters, digits, - and _")
        if not isinstance(one.seed, int) or not 0 <= one.seed < 2**63:
            raise FlashUError(f"item {number}: the seed {one.seed!r} is no whole number from 0 to 2**63 - 1")
        found.append(one)
    if not found:
        raise FlashUError("there is nothing to draw: give at least one item")
    if len({one.key for one in found}) < len(found):
        raise FlashUError("two items have the same key")
    return found
