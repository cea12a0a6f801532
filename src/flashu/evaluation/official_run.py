"""Drawing an official benchmark: each item once, whatever happens in between, by any number of processes."""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from flashu.errors import FlashUError
from flashu.evaluation.files import write_json
from flashu.evaluation.ledger import Ledger, check_run, read_ledger
from flashu.evaluation.official import SAMPLES, Benchmark, Item
from flashu.evaluation.shard import Shard
from flashu.evaluation.timing import clock_of, timed
from flashu.inference.arguments import OnStep
from flashu.inference.engine import Engine, Generation
from flashu.models.registry import FAMILIES, family
from flashu.models.weights import checkpoint_hash
from flashu.plan.presets import FlashUConfig
from flashu.plan.recipe import Recipe

MANIFEST, SUMMARY, RECORDS = "manifest.json", "summary.json", ".flashu"


@dataclass(frozen=True)
class Summary:
    """Of all items finished so far, by any process. Seconds are of drawing and decoding, the median over items;
    ``speedup`` is over the baseline's median on the same machine and prompts."""

    benchmark: str
    recipe: str
    items: int
    of: int
    images: int
    forwards: int | None
    seconds_per_image: float | None
    images_per_hour: float | None
    baseline: str | None = None
    baseline_seconds_per_image: float | None = None
    speedup: float | None = None


def evaluate(
    engine: Engine,
    benchmark: Benchmark,
    out: Path,
    *,
    model: str,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    height: int | None = None,
    width: int | None = None,
    shard: Shard | None = None,
    baseline: Recipe | FlashUConfig | str | None = None,
    baseline_items: int = 3,
    on_item: Callable[[int, int], object] = lambda done, total: None,
    on_step: OnStep | None = None,
) -> Summary:
    """Draw four images of each prompt of this process' shard into ``out``; what is there already stays.

    An image's seed follows from ``seed`` and its place in the benchmark, so neither an interruption nor the number of
    processes changes it. ``steps`` (forwards before the recipe shortens them) and ``guidance`` default to those
    of the authors' scripts, where the model's family has any. ``baseline``: a recipe to time on the first
    ``baseline_items`` prompts; its images are not kept.
    ``on_item`` gets how many items of this process are finished, and of how many. `FlashUError` if ``out`` holds
    results made another way, or another process draws the same shard.
    """
    shard = shard or Shard()
    folder = ResultFolder(out, shard)
    usual = _usual(benchmark, engine)
    guidance = usual["guidance"] if guidance is None else guidance
    settings: dict[str, Any] = {"guidance": guidance, "height": height, "width": width}
    run = {"steps": steps or _steps(usual["steps"], engine), **settings}
    # Calibrated on the benchmark's first prompt by every process, whichever items it draws.
    engine.prepare("generation", prompt=engine.processor.cut(benchmark.items[0].prompt))
    mine = shard.of(benchmark.items)
    other = None if baseline is None else engine.with_recipe(baseline)
    with folder.opened(_identity(engine, benchmark, model, seed, run)) as ledger:
        if other is not None and mine:  # the first forwards of a process are slow; neither side is to pay for them
            other.generate(engine.processor.cut(mine[0].prompt), images_per_prompt=SAMPLES, steps=1, **settings)
        known = folder.records(ledger)
        for number, item in enumerate(mine):
            if other is not None and number < baseline_items and _baseline(other, item) not in known:
                slow = {"steps": steps or _steps(usual["steps"], other), **settings}
                ledger.append(_baseline(other, item), _draw(other, item, seed, slow, None)[1])
            if not benchmark.done(out, item):
                drawn, record = _draw(engine, item, seed, run, on_step)
                part = folder.drafts / benchmark.path(out, item).name
                benchmark.write(drawn.images, item, part)
                ledger.append(item.name, record)
                os.replace(part, benchmark.path(out, item))
            on_item(number + 1, len(mine))
        records = folder.records(ledger)
        done = [item for item in benchmark.items if benchmark.done(out, item)]
        summary = _summary(records, done, benchmark, engine, other)
        folder.finish({item.name: records[item.name] for item in done if item.name in records}, summary)
    return summary


class ResultFolder:
    """A folder of images with DIR/manifest.json (how they were made, how long each took), DIR/summary.json and, in
    DIR/.flashu, one ledger per process and a place for unfinished files."""

    def __init__(self, out: Path, shard: Shard) -> None:
        self.out, self.own = out, out / RECORDS / f"{shard.index}-of-{shard.count}.jsonl"
        self.drafts = self.own.with_suffix(".drafts")
        try:
            self.own.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FlashUError(f"{out} cannot be written: {error.strerror or error}") from error

    @contextmanager
    def opened(self, identity: dict[str, Any]) -> Iterator[Ledger]:
        """The ledger of this process; `FlashUError` if the folder holds results made another way."""
        manifest = self.out / MANIFEST
        if manifest.exists():
            check_run(self.out, _manifest(manifest), identity)
        with Ledger(self.own, identity) as ledger:
            if not manifest.exists():
                write_json(manifest, identity)
            shutil.rmtree(self.drafts, ignore_errors=True)
            self.drafts.mkdir()
            yield ledger
            shutil.rmtree(self.drafts)

    def records(self, ledger: Ledger) -> dict[str, Any]:
        """What any process has recorded so far."""
        found: dict[str, Any] = {}
        for file in sorted(self.own.parent.glob("*.jsonl")):
            found |= ledger.values if file == self.own else read_ledger(file)
        return found

    def finish(self, times: dict[str, Any], summary: Summary) -> None:
        manifest = _manifest(self.out / MANIFEST)
        write_json(self.out / MANIFEST, manifest | {"times": times})
        write_json(self.out / SUMMARY, asdict(summary))


def _manifest(file: Path) -> dict[str, Any]:
    """How a folder's images were made."""
    known = json.loads(file.read_text(encoding="utf-8"))
    known.pop("times", None)
    return known


def _draw(
    engine: Engine, item: Item, seed: int, settings: dict[str, Any], on_step: OnStep | None
) -> tuple[Generation, dict[str, Any]]:
    """An item's images and the record of drawing them."""
    if not engine.layout.draws:
        raise FlashUError("this model was loaded without an autoencoder, so nothing it draws can be seen")
    generate = partial(engine.generate, engine.processor.cut(item.prompt), seed=seed + SAMPLES * item.index)
    started = round(time.time(), 3)
    drawn, seconds = timed(
        lambda: generate(images_per_prompt=SAMPLES, on_step=on_step, **settings), clock_of(engine.model.device)
    )
    about = {"seeds": drawn.seeds, "forwards": len(drawn.trace), "device": str(engine.model.device)}
    return drawn, {"seconds": seconds, "started": started, **about}


def _usual(benchmark: Benchmark, engine: Engine) -> dict[str, Any]:
    """Steps (forwards) and guidance of the authors' script, or else of the model."""
    defaults, name = engine.layout.defaults, engine.model.spec.family
    scripts = family(name).benchmarks if name in FAMILIES else {}
    return {"steps": defaults.steps, "guidance": defaults.guidance, **scripts.get(benchmark.kind, {})}


def _steps(forwards: int, engine: Engine) -> int:
    """The ``steps`` that take so many forwards: a reference recipe counts time points, every other forwards."""
    return forwards + engine.recipe.reference


def _baseline(engine: Engine, item: Item) -> str:
    return f"baseline/{engine.recipe.name}/{item.name}"


def _identity(engine: Engine, benchmark: Benchmark, model: str, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Everything the images depend on."""
    recipe = engine.recipe
    calibration = engine.calibration if recipe.ffn_prunes() else None
    return {
        "benchmark": {"kind": benchmark.kind, "items": len(benchmark.items), "prompts": benchmark.digest},
        "model": {"name": model, "hash": checkpoint_hash(engine.model), "dtype": str(engine.model.dtype)},
        "recipe": recipe.to_dict(),
        "calibration": None if calibration is None else calibration.made_from.get("generation"),
        "settings": settings,
        "seeds": {"first": seed, "rule": f"first + {SAMPLES} * item + sample"},
        "versions": {name: version(name) for name in ("flashu", "torch")} | {"python": platform.python_version()},
        "cuda": torch.version.cuda,
    }


def _summary(
    records: dict[str, Any], done: list[Item], benchmark: Benchmark, engine: Engine, other: Engine | None
) -> Summary:
    known = [records[item.name] for item in done if item.name in records]
    names = [] if other is None else [_baseline(other, item) for item in benchmark.items]
    slow = [records[name] for name in names if name in records]
    seconds, behind = _seconds_per_image(known), _seconds_per_image(slow)
    return Summary(
        benchmark=benchmark.kind,
        recipe=engine.recipe.name,
        items=len(done),
        of=len(benchmark.items),
        images=SAMPLES * len(done),
        forwards=known[0]["forwards"] if known else None,
        seconds_per_image=seconds,
        images_per_hour=None if seconds is None else 3600 / seconds,
        baseline=None if other is None or not slow else other.recipe.name,
        baseline_seconds_per_image=behind,
        speedup=None if seconds is None or behind is None else behind / seconds,
    )


def _seconds_per_image(records: list[dict[str, Any]]) -> float | None:
    return statistics.median(record["seconds"] for record in records) / SAMPLES if records else None
