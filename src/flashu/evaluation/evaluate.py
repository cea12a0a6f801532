"""Drawing a benchmark: each item once, whatever happens in between."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from flashu.errors import FlashUError
from flashu.evaluation.benchmarks import SAMPLES, Benchmark, Item
from flashu.evaluation.ledger import Ledger
from flashu.evaluation.shard import Shard
from flashu.inference.engine import Engine, Generation
from flashu.inference.loops.denoise import OnStep
from flashu.models.weights import checkpoint_hash
from flashu.plan.recipe import FlashUConfig, Recipe

Finished = Callable[[int, int], None]
"""Called with how many items of this process are finished, and of how many."""


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
    on_item: Finished | None = None,
    on_step: OnStep | None = None,
) -> Summary:
    """Draw four images of each prompt of this process' shard into ``out``; what is there already stays.

    An image's seed follows from ``seed`` and its place in the benchmark, so neither an interruption nor the number of
    processes changes it. ``steps`` (forwards before the recipe shortens them) and ``guidance`` default to those of
    Show-o2's scripts. ``baseline``: a recipe to time on the first ``baseline_items`` prompts; its images are not kept.
    `FlashUError` if ``out`` holds results made another way.
    """
    shard = shard or Shard()
    asked = engine.recipe
    # The authors count time points; a reference recipe does so too, every other counts forwards.
    drawn_steps = steps or benchmark.points - (not asked.reference)
    settings: dict[str, Any] = {
        "steps": drawn_steps,
        "guidance": benchmark.guidance if guidance is None else guidance,
        "height": height,
        "width": width,
    }
    ledger = Ledger(out, shard)
    # Calibrated on the benchmark's first prompt by every process, whichever items it draws.
    engine.prepare("generation", prompt=_fitted(engine, benchmark.items[0].prompt))
    ledger.open(_identity(engine, asked, benchmark, model, seed, settings))
    mine = shard.of(benchmark.items)
    slow = None if baseline is None else engine.with_recipe(baseline)
    if slow is not None and mine:  # the first forwards of a process are slow; neither side is to pay for them
        slow.generate(_fitted(engine, mine[0].prompt), images_per_prompt=SAMPLES, **settings | {"steps": 1})
    for number, item in enumerate(mine):
        if slow is not None and number < baseline_items and ledger.recorded(f"baseline-{item.name}") is None:
            points = steps or benchmark.points - (not slow.recipe.reference)
            _, facts = _draw(slow, item, seed, settings | {"steps": points}, None)
            ledger.record(f"baseline-{item.name}", facts | {"recipe": slow.recipe.name})
        if not benchmark.done(out, item):
            drawn, facts = _draw(engine, item, seed, settings, on_step)
            part = ledger.drafts / benchmark.place(out, item).name
            benchmark.write(drawn.images, item, part)
            ledger.record(item.name, facts)
            os.replace(part, benchmark.place(out, item))
        if on_item is not None:
            on_item(number + 1, len(mine))
    summary = _summary(ledger, benchmark, asked, None if slow is None else slow.recipe.name)
    finished = {item.name: ledger.recorded(item.name) for item in benchmark.items if benchmark.done(out, item)}
    ledger.finish({name: facts for name, facts in finished.items() if facts is not None}, asdict(summary))
    ledger.close()
    return summary


def _draw(
    engine: Engine, item: Item, seed: int, settings: dict[str, Any], on_step: OnStep | None
) -> tuple[Generation, dict[str, Any]]:
    """An item's images and the facts of drawing them."""
    if engine.processor.vae is None:
        raise FlashUError("this model was loaded without an autoencoder, so nothing it draws can be seen")
    first = seed + SAMPLES * item.index
    began, started = time.perf_counter(), time.time()
    drawn = engine.generate(
        _fitted(engine, item.prompt), seed=first, images_per_prompt=SAMPLES, on_step=on_step, **settings
    )
    facts = {
        "seconds": time.perf_counter() - began,
        "started": round(started, 3),
        "seeds": drawn.seeds,
        "forwards": len(drawn.trace),
        "device": str(engine.model.device),
    }
    return drawn, facts


def _fitted(engine: Engine, prompt: str) -> str:
    """The prompt, cut to the tokens the model takes, as the authors' script cuts it."""
    text = engine.processor.text
    ids = text.encode(prompt)
    return prompt if len(ids) <= text.max_text else text.decode(ids[: text.max_text])


def _identity(
    engine: Engine, asked: Recipe, benchmark: Benchmark, model: str, seed: int, settings: dict[str, Any]
) -> dict[str, Any]:
    """Everything the images depend on."""
    known = engine.calibration if asked.ffn_prunes() else None
    return {
        "benchmark": {"kind": benchmark.kind, "items": len(benchmark.items), "prompts": benchmark.digest},
        "model": {"name": model, "hash": checkpoint_hash(engine.model), "dtype": str(engine.model.dtype)},
        "recipe": asked.to_dict(),
        "calibration": None if known is None else known.made_from.get("generation"),
        "settings": settings,
        "seeds": {"first": seed, "rule": f"first + {SAMPLES} * item + sample"},
        "versions": {name: version(name) for name in ("flashu", "torch")} | {"python": platform.python_version()},
        "cuda": torch.version.cuda,
    }


def _summary(ledger: Ledger, benchmark: Benchmark, recipe: Recipe, baseline: str | None) -> Summary:
    done = [item for item in benchmark.items if benchmark.done(ledger.out, item)]
    facts = [found for item in done if (found := ledger.recorded(item.name)) is not None]
    slow = [found for item in benchmark.items if (found := ledger.recorded(f"baseline-{item.name}")) is not None]
    slow = [found for found in slow if found["recipe"] == baseline]
    pace = statistics.median(found["seconds"] for found in facts) / SAMPLES if facts else None
    behind = statistics.median(found["seconds"] for found in slow) / SAMPLES if slow else None
    return Summary(
        benchmark=benchmark.kind,
        recipe=recipe.name,
        items=len(done),
        of=len(benchmark.items),
        images=SAMPLES * len(done),
        forwards=facts[0]["forwards"] if facts else None,
        seconds_per_image=pace,
        images_per_hour=None if pace is None else 3600 / pace,
        baseline=baseline if slow else None,
        baseline_seconds_per_image=behind,
        speedup=None if pace is None or behind is None else behind / pace,
    )
