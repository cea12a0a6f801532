"""`flashu eval`: the official benchmarks."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from flashu.cli import options as opt
from flashu.cli.opened import open_engine, usable
from flashu.cli.terminal import emit, out, progress
from flashu.plan.recipe import load_recipe

if TYPE_CHECKING:
    from flashu.evaluation.official import Benchmark
    from flashu.plan import Step

app = typer.Typer(help="Draw an official benchmark into the folders its scorer reads. Run again to go on.")

Output = Annotated[Path, typer.Option("-o", "--output", file_okay=False, help="Folder of the images.")]
Part = Annotated[
    str | None, typer.Option("--shard", help="i/n: part i (from 0) of n; else RANK and WORLD_SIZE, else all.")
]
Baseline = Annotated[str | None, typer.Option(help="A preset to time beside it on the first prompts, e.g. exact.")]


@app.command("geneval")
def geneval(
    output: Output,
    prompts: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="evaluation_metadata.jsonl")],
    model: opt.Model = "scenes",
    preset: opt.Preset = "exact",
    steps: opt.Steps = None,
    guidance: opt.Guidance = None,
    seed: opt.Seed = 0,
    height: opt.Height = None,
    width: opt.Width = None,
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    calibration: opt.CalibrationFile = None,
    shard: Part = None,
    baseline: Baseline = None,
    as_json: opt.AsJson = False,
) -> None:
    """GenEval: DIR/00000/{metadata.jsonl, samples/, grid.png}; 100 time points and guidance 7.5 if not given."""
    from flashu.evaluation.official import GenEval

    sizes = {"steps": steps, "guidance": guidance, "height": height, "width": width}
    opened = (model, preset, dtype, device, calibration)
    _evaluate(GenEval.read(prompts), output, opened, seed, sizes, shard, baseline, as_json)


@app.command("dpg")
def dpg(
    output: Output,
    prompts: Annotated[Path, typer.Option(exists=True, help="dpg_bench_meta_data.json, or a folder of text files.")],
    model: opt.Model = "scenes",
    preset: opt.Preset = "exact",
    steps: opt.Steps = None,
    guidance: opt.Guidance = None,
    seed: opt.Seed = 0,
    height: opt.Height = None,
    width: opt.Width = None,
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    calibration: opt.CalibrationFile = None,
    shard: Part = None,
    baseline: Baseline = None,
    as_json: opt.AsJson = False,
) -> None:
    """DPG-Bench: DIR/NAME.png, a 2x2 grid per prompt; 50 time points and guidance 10 if not given."""
    from flashu.evaluation.official import DPG

    sizes = {"steps": steps, "guidance": guidance, "height": height, "width": width}
    opened = (model, preset, dtype, device, calibration)
    _evaluate(DPG.read(prompts), output, opened, seed, sizes, shard, baseline, as_json)


@app.command("geneval-score")
def geneval_score(
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="What `flashu eval geneval` drew.")],
    detector: Annotated[
        str | None, typer.Option(help="Instance segmentation with COCO's classes: hub id or folder (a Mask2Former).")
    ] = None,
    clip: Annotated[str | None, typer.Option(help="CLIP, for colours: hub id or folder (ViT-L/14).")] = None,
    sure: Annotated[float, typer.Option(min=0, max=1, help="Least score of a detection.")] = 0.3,
    sure_counting: Annotated[float, typer.Option(min=0, max=1, help="The same in counting prompts.")] = 0.9,
    device: opt.Device = None,
    as_json: opt.AsJson = False,
) -> None:
    """Score a GenEval folder with networks of transformers; NOT the official scorer. Writes DIR/flashu-score.json."""
    from flashu.evaluation.files import write_json
    from flashu.evaluation.geneval import SCORER, Limits, score
    from flashu.evaluation.geneval_networks import CLIP, DETECTOR, ColourClassifier, Detector

    names = (detector or DETECTOR, clip or CLIP)
    place = usable(device)
    detect, colour = Detector(names[0], place), ColourClassifier(names[1], place)
    with progress() as bars:
        bar = bars.add_task("images", total=None)

        def on_image(done: int, total: int) -> None:
            bars.update(bar, completed=done, total=total)

        found = score(folder, detect, colour, Limits(sure, sure_counting), networks=names, on_image=on_image)
    write_json(folder / "flashu-score.json", found.to_dict())
    if as_json:
        emit({name: value for name, value in found.to_dict().items() if name != "images"})
        return
    table = Table("category", "images", "right", "score", "95 %", title=SCORER)
    for name, part in found.categories.items():
        table.add_row(name, str(part.n), str(part.hits), f"{part.value:.3f}", f"{part.low:.3f} to {part.high:.3f}")
    table.add_row("mean", "", "", f"{found.overall:.3f}", "")
    out().print(table)


@app.command("lmms-task")
def lmms_task(
    output: Annotated[Path, typer.Option("-o", "--output", file_okay=False, help="Folder of the task.")],
    count: Annotated[int, typer.Option(min=1, help="Questions of each of the six kinds.")] = 10,
    seed: opt.Seed = 0,
) -> None:
    """A small task for lmms-eval: questions about held-out scenes, to try the harness with."""
    from flashu.evaluation.lmms_task import TASK, write_task

    write_task(output, count, seed)
    out().print(f"python -m lmms_eval --model flashu --include_path {output} --tasks {TASK}", soft_wrap=True)


def _evaluate(
    benchmark: Benchmark,
    output: Path,
    opened: tuple[str, str, str | None, str | None, Path | None],
    seed: int,
    sizes: dict[str, Any],
    part: str | None,
    baseline: str | None,
    as_json: bool,
) -> None:
    from flashu.evaluation.official_run import evaluate
    from flashu.evaluation.shard import Shard

    shard = Shard.of_process() if part is None else Shard.parse(part)
    against = None if baseline is None else load_recipe(baseline)
    model, preset, dtype, device, calibration = opened
    engine = open_engine(model, preset, dtype, device or _local_device(), calibration)
    with progress() as bars:
        items = bars.add_task("prompts", total=len(shard.of(benchmark.items)))
        forwards = bars.add_task("forwards", total=None)

        def on_item(done: int, total: int) -> None:
            bars.update(items, completed=done, total=total)

        def on_step(step: Step, *_: Any) -> None:
            bars.update(forwards, completed=step.index + 1, total=step.total)

        summary = evaluate(
            engine,
            benchmark,
            output,
            model=model,
            seed=seed,
            shard=shard,
            baseline=against,
            on_item=on_item,
            on_step=on_step,
            **sizes,
        )
    if as_json:
        emit(asdict(summary))
        return
    for name, value in asdict(summary).items():
        if value is not None:
            out().print(f"{name.replace('_', ' ')}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}")


def _local_device() -> str | None:
    """The device of this process on its machine, where a launcher counts them and torch sees them."""
    import torch

    rank = os.environ.get("LOCAL_RANK")
    return None if rank is None or not torch.cuda.is_available() else f"cuda:{rank}"
