"""One worker of a job: draws the items of a shard and writes them as one tar file."""

from __future__ import annotations

import io
import json
import tarfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from flashu.errors import PromptError
from flashu.evaluation.files import atomic_write, write_json
from flashu.evaluation.ledger import check_run

MADE = ".flashu/made.json"


@dataclass(frozen=True)
class Task:
    """A shard: its number, and its items' keys, prompts and seeds."""

    number: int
    items: Sequence[Mapping[str, Any]]


class Worker:
    """Holds an engine and draws shards with it. It is also what Ray Data calls with a batch of one shard."""

    def __init__(
        self,
        out: str,
        source: tuple[str, str, str | None, str | None],
        batch_size: int,
        settings: Mapping[str, Any],
    ) -> None:
        from flashu.inference.engine import Engine
        from flashu.models.registry import open_model
        from flashu.models.weights import checkpoint_hash

        name, recipe, dtype, device = source
        model = open_model(name, recipe=recipe, dtype=dtype, device=device)
        self.out, self.batch_size, self.settings = Path(out), batch_size, dict(settings)
        self.engine = Engine(model, model.processor, recipe, model.calibration)
        made = {
            "model_hash": checkpoint_hash(model),
            "dtype": str(model.dtype),
            "recipe": self.engine.recipe.to_dict(),
        }
        # Every worker of every run makes the same, or there would be two kinds of images in one folder.
        path = self.out / MADE
        if path.exists():
            check_run(path, json.loads(path.read_text(encoding="utf-8")), made)
        else:
            write_json(path, made)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[str]]:
        tasks = [Task(*json.loads(text)) for text in batch["task"]]
        return {"record": [json.dumps(self.draw(task)) for task in tasks]}

    def draw(self, task: Task) -> dict[str, Any]:
        """Write a shard, if it is not there, and say what it took."""
        path = shard_path(self.out, task.number)
        began, failed = time.perf_counter(), 0
        if not path.exists():
            file = io.BytesIO()
            with tarfile.open(fileobj=file, mode="w") as tar:
                for at in range(0, len(task.items), self.batch_size):
                    part = task.items[at : at + self.batch_size]
                    for item, drawn in zip(part, self._drawn(part), strict=True):
                        failed += isinstance(drawn, PromptError)
                        _add(tar, item, drawn)
            atomic_write(path, file.getvalue())
        seconds = round(time.perf_counter() - began, 3)
        return {"shard": task.number, "items": len(task.items), "failed": failed, "seconds": seconds}

    def _drawn(self, items: Sequence[Mapping[str, Any]]) -> list[Image.Image | PromptError]:
        """The items' images; where a prompt cannot be drawn, why, and the others one by one."""
        prompts, seeds = [item["prompt"] for item in items], [item["seed"] for item in items]
        try:
            return list(self.engine.generate(prompts, seed=seeds, **self.settings).images)
        except PromptError as error:
            if len(items) == 1:
                return [error]
            return [self._drawn([item])[0] for item in items]


def shard_path(out: Path, number: int) -> Path:
    return out / f"shard-{number:06d}.tar"


def _add(tar: tarfile.TarFile, item: Mapping[str, Any], drawn: Image.Image | PromptError) -> None:
    about = {"prompt": item["prompt"], "seed": item["seed"]}
    if isinstance(drawn, PromptError):
        about["error"] = str(drawn)
    else:
        file = io.BytesIO()
        drawn.save(file, "PNG")
        _write(tar, f"{item['key']}.png", file.getvalue())
    _write(tar, f"{item['key']}.json", json.dumps(about, ensure_ascii=False).encode())


def _write(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
