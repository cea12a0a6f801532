"""`flashu batch`: images of many prompts."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from flashu.cli import options as opt
from flashu.cli.output import bar, emit, out, progress
from flashu.errors import FlashUError


@opt.offers(opt.EngineOptions, "model", "preset", "dtype", "device")
@opt.offers(opt.DrawingOptions)
def batch(
    prompts: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, help="A prompt a line, or .jsonl with prompt, key, seed.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", file_okay=False, help="Folder of the shards.")],
    options: opt.EngineOptions,
    drawing: opt.DrawingOptions,
    workers: Annotated[int, typer.Option(min=0, max=10_000, help="Ray actors; 0 draws in this process.")] = 0,
    gpus_per_worker: Annotated[float, typer.Option(min=0, max=64, help="GPUs that each actor takes.")] = 0,
    shard_size: Annotated[int, typer.Option(min=1, max=1_000_000, help="Items of a shard.")] = 256,
    batch_size: Annotated[int, typer.Option(min=1, max=1024, help="Images drawn at a time.")] = 8,
    as_json: opt.AsJson = False,
) -> None:
    """Draw an image of each prompt into WebDataset shards. Run again to resume."""
    from flashu.batch import generate

    with progress() as bars:
        report = generate(
            _items(prompts),
            output,
            model=options.model,
            recipe=options.preset,
            dtype=options.dtype,
            device=options.device,
            seed=drawing.seed,
            shard_size=shard_size,
            batch_size=batch_size,
            workers=workers,
            gpus_per_worker=gpus_per_worker,
            on_shard=bar(bars, "shards"),
            **drawing.settings,
        )
    if as_json:
        emit(asdict(report))
        return
    for name, value in asdict(report).items():
        out().print(f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}")


def _items(file: Path) -> list[Any]:
    try:
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        return [json.loads(line) for line in lines] if file.suffix == ".jsonl" else lines
    except ValueError as error:
        raise FlashUError(f"{file} cannot be read: {error}") from error
