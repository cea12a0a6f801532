"""Drawing an official benchmark: each item once, whatever happens in between, by any number of processes."""

from __future__ import annotations

import json
import platform
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from flashu.errors import FlashUError
from flashu.evaluation.files import write_json
from flashu.evaluation.ledger import Ledger, check_run, read_ledger
from flashu.evaluation.official import Benchmark, Item
from flashu.evaluation.shard import Shard
from flashu.evaluation.timing import clock_of, timed
from flashu.inference.arguments import OnStep
from flashu.inference.engine import Engine, Generation
from flashu.models.registry import FAMILIES, family
from flashu.models.weights import checkpoint_hash
from flashu.plan.presets import FlashUConfig
from flashu.plan.recipe import Recipe

MANIFEST, SUMMARY, RECORDS = "manifest.json", "summary.json", ".flashu"
ORIGINAL = "original"


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
    shard: Shard | None = None,
    baseline: Recipe | FlashUConfig | str | None = None,
    baseline_items: int = 3,
    on_item: Callable[[int, int], object] = lambda done, total: None,
    on_step: OnStep | None = None,
    **settings: Any,
) -> Summary:
    """Draw the images of each item of this process' shard into ``out``; what is there already stays.

    An image's seed follows from ``seed`` and its place in the benchmark, so neither an interruption nor the number of
    processes changes it. ``settings``: as of `Engine.generate`, or of `Engine.edit` where pictures are edited; those
    not given (or None) are the authors' scripts', where the model's family has any, else the model's. ``baseline``: a
    recipe, or "original" for the original program, to time on the first ``baseline_items``; its images are not kept.
    ``on_item`` gets how many items of this process are finished, and of how many. `FlashUError` if ``out`` holds
    results made another way, or another process draws the same shard.
    """
    shard = shard or Shard()
    folder = ResultFolder(out, shard)
    given = {name: value for name, value in settings.items() if value is not None}
    if benchmark.edits and "guidance" in given:
        given["text_guidance"] = given.pop("guidance")
    run = _settings(benchmark, engine) | given
    # Calibrated on the benchmark's first prompt by every process, whichever items it draws.
    engine.prepare("generation", prompt=engine.processor.cut(benchmark.items[0].prompt))
    mine = shard.of(benchmark.items)
    other = None if baseline is None else _other(engine, baseline, benchmark)
    with folder.opened(_identity(engine, benchmark, model, seed, run)) as ledger:
        if other is not None and mine:  # the first forwards of a process are slow; neither side is to pay for them
            _made(other, benchmark, mine[0], seed, _of(other, run | {"steps": 1}), None)
        known = folder.records(ledger)
        for number, item in enumerate(mine):
            if other is not None and number < baseline_items and _baseline(other, item) not in known:
                slow = _of(other, _settings(benchmark, other) | given)
                ledger.append(_baseline(other, item), _timed(other, benchmark, item, seed, slow, None)[1])
            if not benchmark.done(out, item):
                images, record = _timed(engine, benchmark, item, seed, run, on_step)
                part = folder.drafts / benchmark.path(out, item).name
                benchmark.write(images, item, part)
                ledger.append(item.name, record)
                benchmark.path(out, item).parent.mkdir(parents=True, exist_ok=True)
                benchmark.publish(out, item, part)
            on_item(number + 1, len(mine))
        records = folder.records(ledger)
        done = [item for item in benchmark.items if benchmark.done(out, item)]
        benchmark.index(out, done)
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


def _timed(
    engine: Engine, benchmark: Benchmark, item: Item, seed: int, settings: dict[str, Any], on_step: OnStep | None
) -> tuple[list[Image.Image], dict[str, Any]]:
    """An item's images and the record of making them."""
    if not engine.layout.draws:
        raise FlashUError("this model was loaded without an autoencoder, so nothing it draws can be seen")
    started = round(time.time(), 3)
    drawn, seconds = timed(
        lambda: _made(engine, benchmark, item, seed, settings, on_step), clock_of(engine.model.device)
    )
    images = [image for part in drawn for image in part.images]
    about = {"seeds": [s for part in drawn for s in part.seeds], "forwards": len(drawn[0].trace)}
    device = str(engine.model.device)
    return images, {"seconds": seconds, "started": started, "images": len(images), **about, "device": device}


def _made(
    engine: Engine, benchmark: Benchmark, item: Item, seed: int, settings: dict[str, Any], on_step: OnStep | None
) -> list[Generation]:
    """An item's images; of the original program, which makes one at a time, the first. Edits in turn are one session,
    as an instruction may speak of those before it; the original program edits each result anew."""
    first, cut = seed + benchmark.samples * item.index, engine.processor.cut
    more: dict[str, Any] = {} if on_step is None else {"on_step": on_step}
    if not benchmark.edits:
        if engine.recipe.name != ORIGINAL:
            more["images_per_prompt"] = benchmark.samples
        return [engine.generate(cut(item.prompt), seed=first, **settings, **more)]
    assert item.source is not None
    if not item.turns:
        return [engine.edit(item.source(), cut(item.prompt), seed=first, **settings, **more)]
    prompts = [cut(prompt) for prompt in (item.prompt, *item.turns)]
    if engine.recipe.name != ORIGINAL:
        session = engine.editing(item.source())
        return [session.edit(prompt, seed=first + n, **settings, **more) for n, prompt in enumerate(prompts)]
    picture, made = item.source(), []
    for n, prompt in enumerate(prompts):
        made.append(engine.edit(picture, prompt, seed=first + n, **settings))
        picture = made[-1].images[0]
    return made


def _other(engine: Engine, baseline: Recipe | FlashUConfig | str, benchmark: Benchmark) -> Engine:
    """What the engine is compared with."""
    if baseline != ORIGINAL:
        return engine.with_recipe(baseline)
    name = engine.model.spec.family
    if name not in FAMILIES:
        raise FlashUError(f"{name} is no family of the registry, which would say what the original program is")
    other = family(name).reference(engine.model, engine.processor)
    if benchmark.edits and type(other).edit is Engine.edit:
        raise FlashUError(
            f"the original program of {name} edits no pictures here: leave the baseline out, or give exact"
        )
    return other


def _of(other: Engine, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as the compared engine takes them: where codes are drawn one by one, the original asks for no steps."""
    fixed = other.recipe.name == ORIGINAL and other.model.spec.drawing == "autoregressive"
    return {name: value for name, value in settings.items() if not (fixed and name == "steps")}


def _settings(benchmark: Benchmark, engine: Engine) -> dict[str, Any]:
    """Those of the authors' script, or else the model's own. Steps are forwards, but a reference recipe counts time
    points, one more."""
    defaults, name = engine.layout.defaults, engine.model.spec.family
    usual = {"steps": defaults.steps} | ({} if benchmark.edits else {"guidance": defaults.guidance})
    usual |= dict(family(name).benchmarks.get(benchmark.kind, {})) if name in FAMILIES else {}
    return usual | {"steps": usual["steps"] + engine.recipe.reference}


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
        "seeds": {"first": seed, "rule": f"first + {benchmark.samples} * item + sample"},
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
        images=sum(1 + len(item.turns) if benchmark.edits else benchmark.samples for item in done),
        forwards=known[0]["forwards"] if known else None,
        seconds_per_image=seconds,
        images_per_hour=None if seconds is None else 3600 / seconds,
        baseline=None if other is None or not slow else other.recipe.name,
        baseline_seconds_per_image=behind,
        speedup=None if seconds is None or behind is None else behind / seconds,
    )


def _seconds_per_image(records: list[dict[str, Any]]) -> float | None:
    return statistics.median(record["seconds"] / record["images"] for record in records) if records else None
