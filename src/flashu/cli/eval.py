"""`flashu eval`: the official benchmarks."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from flashu.cli import options as opt
from flashu.cli.opened import open_engine
from flashu.cli.output import bar, emit, out, progress
from flashu.errors import FlashUError
from flashu.plan.presets import Target, tuned_on

if TYPE_CHECKING:
    from flashu.evaluation.official import Benchmark

app = typer.Typer(help="Draw an official benchmark into the folders its scorer reads. Run again to resume.")

OFFERED = ("model", "preset", "dtype", "device", "calibration")
Output = Annotated[Path, typer.Option("-o", "--output", file_okay=False, help="Folder of the images.")]
Shard = Annotated[str | None, typer.Option(help="i/n: part i (from 0) of n; else RANK and WORLD_SIZE, else all.")]
Baseline = Annotated[
    str | None, typer.Option(help="A preset (or original: the authors' program) to time on the first items.")
]


@app.command()
@opt.offers(opt.EngineOptions, *OFFERED)
@opt.offers(opt.DrawingOptions)
def geneval(
    output: Output,
    prompts: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="evaluation_metadata.jsonl")],
    options: opt.EngineOptions,
    drawing: opt.DrawingOptions,
    shard: Shard = None,
    baseline: Baseline = None,
    as_json: opt.AsJson = False,
) -> None:
    """GenEval: DIR/00000/{metadata.jsonl, samples/, grid.png}; the model's authors' settings if not given."""
    from flashu.evaluation.official import GenEval

    draw(GenEval.read(prompts), output, options, drawing, shard, baseline, as_json)


@app.command()
@opt.offers(opt.EngineOptions, *OFFERED)
@opt.offers(opt.DrawingOptions)
def dpg(
    output: Output,
    prompts: Annotated[Path, typer.Option(exists=True, help="dpg_bench_meta_data.json, or a folder of text files.")],
    options: opt.EngineOptions,
    drawing: opt.DrawingOptions,
    shard: Shard = None,
    baseline: Baseline = None,
    as_json: opt.AsJson = False,
) -> None:
    """DPG-Bench: DIR/NAME.png, a 2x2 grid per prompt; the model's authors' settings if not given."""
    from flashu.evaluation.official import DPG

    draw(DPG.read(prompts), output, options, drawing, shard, baseline, as_json)


@app.command()
@opt.offers(opt.EngineOptions, *OFFERED)
@opt.offers(opt.DrawingOptions)
def geneval2(
    output: Output,
    prompts: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="geneval2_data.jsonl")],
    options: opt.EngineOptions,
    drawing: opt.DrawingOptions,
    shard: Shard = None,
    baseline: Baseline = None,
    as_json: opt.AsJson = False,
) -> None:
    """GenEval 2: DIR/images/00000.png and DIR/image_paths.json, which its evaluation.py reads."""
    from flashu.evaluation.official import GenEval2

    draw(GenEval2.read(prompts), output, options, drawing, shard, baseline, as_json)


@app.command()
@opt.offers(opt.EngineOptions, *OFFERED)
@opt.offers(opt.DrawingOptions)
def gedit(
    output: Output,
    options: opt.EngineOptions,
    drawing: opt.DrawingOptions,
    data: Annotated[
        str, typer.Option(help="Hub id or folder of the dataset, or a .jsonl file of its rows with paths of pictures.")
    ] = "stepfun-ai/GEdit-Bench",
    language: Annotated[str | None, typer.Option(help="en or cn; both if not given.")] = None,
    shard: Shard = None,
    baseline: Baseline = None,
    as_json: opt.AsJson = False,
) -> None:
    """GEdit-Bench: DIR/fullset/TASK/LANGUAGE/KEY.png and KEY_SRCIMG.png; DIR's name is the scorer's --model_name."""
    from flashu.evaluation.official_edits import GEdit

    draw(GEdit.read(data, language), output, options, drawing, shard, baseline, as_json)


@app.command()
@opt.offers(opt.EngineOptions, *OFFERED)
@opt.offers(opt.DrawingOptions)
def imgedit(
    output: Output,
    instructions: Annotated[
        Path, typer.Option(exists=True, dir_okay=False, help="Its JSON file: single turn, UGE or several turns.")
    ],
    images: Annotated[Path, typer.Option(exists=True, file_okay=False, help="Folder of the pictures it names.")],
    options: opt.EngineOptions,
    drawing: opt.DrawingOptions,
    shard: Shard = None,
    baseline: Baseline = None,
    as_json: opt.AsJson = False,
) -> None:
    """ImgEdit: DIR/KEY.png; of several turns DIR/KEY/turn1.png, turn2.png ..., each made of the one before."""
    from flashu.evaluation.official_edits import ImgEdit

    draw(ImgEdit.read(instructions, images), output, options, drawing, shard, baseline, as_json)


@app.command()
@opt.offers(opt.EngineOptions, "device")
def geneval_score(
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="What `flashu eval geneval` drew.")],
    options: opt.EngineOptions,
    detector: Annotated[
        str | None, typer.Option(help="Instance segmentation with COCO's classes: hub id or folder (a Mask2Former).")
    ] = None,
    clip: Annotated[str | None, typer.Option(help="CLIP, for colours: hub id or folder (ViT-L/14).")] = None,
    sure: Annotated[float, typer.Option(min=0, max=1, help="Least score of a detection.")] = 0.3,
    sure_counting: Annotated[float, typer.Option(min=0, max=1, help="The same in counting prompts.")] = 0.9,
    as_json: opt.AsJson = False,
) -> None:
    """Score a GenEval folder with networks of transformers; NOT the official scorer. Writes DIR/flashu-score.json."""
    from flashu.evaluation.files import write_json
    from flashu.evaluation.geneval import SCORER, Limits, score
    from flashu.evaluation.geneval_networks import CLIP, DETECTOR, ColourClassifier, Detector
    from flashu.models.place import find_device

    names = (detector or DETECTOR, clip or CLIP)
    device = find_device(options.device)
    detect, colour = Detector(names[0], device), ColourClassifier(names[1], device)
    with progress() as bars:
        on_image = bar(bars, "images")
        found = score(folder, detect, colour, Limits(sure, sure_counting), networks=names, on_image=on_image)
    content = found.to_dict()
    write_json(folder / "flashu-score.json", content)
    if as_json:
        emit({name: value for name, value in content.items() if name != "images"})
        return
    table = Table("category", "images", "right", "score", "95 %", title=SCORER)
    for name, part in found.categories.items():
        interval = f"{part.low:.3f} to {part.high:.3f}"
        table.add_row(name, str(part.n), str(part.hits), f"{part.value:.3f}", interval)
    table.add_row("mean", "", "", f"{found.overall:.3f}", "")
    out().print(table)


@app.command()
def lmms_task(
    output: Annotated[Path, typer.Option("-o", "--output", file_okay=False, help="Folder of the task.")],
    count: Annotated[int, opt.number("items", "Questions of each of the six kinds.")] = 10,
    seed: opt.ItemSeed = 0,
) -> None:
    """A small task for lmms-eval: questions about held-out scenes, to try the harness with."""
    from flashu.evaluation.lmms_task import TASK, write_task

    write_task(output, count, seed)
    out().print(f"python -m lmms_eval --model flashu --include_path {output} --tasks {TASK}", soft_wrap=True)


def draw(
    benchmark: Benchmark,
    output: Path,
    options: opt.EngineOptions,
    drawing: opt.DrawingOptions,
    part: str | None,
    baseline: str | None,
    as_json: bool,
) -> None:
    from flashu.evaluation.official_run import ORIGINAL, evaluate
    from flashu.evaluation.shard import Shard

    shard = Shard.of_process() if part is None else Shard.parse(part)
    if baseline is not None and baseline != ORIGINAL:
        tuned_on(baseline, Target(options.model))
    engine = open_engine(replace(options, device=options.device or local_device()))
    with progress() as bars:
        on_item, forwards = bar(bars, "prompts", len(shard.of(benchmark.items))), bar(bars, "forwards")
        summary = evaluate(
            engine,
            benchmark,
            output,
            model=options.model,
            seed=drawing.seed,
            shard=shard,
            baseline=baseline,
            on_item=on_item,
            on_step=lambda step, *_: forwards(step.index + 1, step.total),
            **drawing.settings,
        )
    if as_json:
        emit(asdict(summary))
        return
    for name, value in asdict(summary).items():
        if value is not None:
            out().print(f"{name.replace('_', ' ')}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}")


def local_device() -> str | None:
    """The device of this process on its machine, where a launcher counts them and torch sees them."""
    import torch

    rank = os.environ.get("LOCAL_RANK")
    if rank is None or not torch.cuda.is_available():
        return None
    if not rank.isdecimal():
        raise FlashUError(f"LOCAL_RANK is {rank!r}, not the number of a device: unset it")
    return f"cuda:{rank}"
