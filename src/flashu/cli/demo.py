"""`flashu demo`: the same prompts and questions with and without FlashU, side by side."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from flashu.cli import options as opt
from flashu.cli.opened import open_engine
from flashu.cli.output import emit, out, progress
from flashu.errors import FlashUError


@opt.offers(opt.EngineOptions, "device")
def demo(
    options: opt.EngineOptions,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the report.")] = Path("out/demo"),
    models: Annotated[str | None, typer.Option("--model", help="Embedded models, separated by commas.")] = None,
    images: Annotated[int, opt.number("items", "Images per recipe, spread over six categories.", least=6)] = 48,
    questions: Annotated[int, opt.number("items", "Questions per recipe, spread over six kinds.", least=6)] = 60,
    edits: Annotated[int, opt.number("items", "Edits per recipe, of five kinds, where a model edits.", least=5)] = 40,
    steps: opt.Steps = None,
    seed: opt.ItemSeed = 0,
    threads: Annotated[int, opt.number("threads", "CPU threads; more than one slows a model this small.")] = 1,
    minutes: Annotated[float, opt.number("minutes", "When to stop at the latest, with fewer items if need be.")] = 4,
    as_json: opt.AsJson = False,
) -> None:
    """Draw the same prompts, answer the same questions and make the same edits with and without FlashU; write a report
    and print a table."""
    from flashu.models.registry import CHECKPOINTS

    shown = ",".join(checkpoint.name for checkpoint in CHECKPOINTS if checkpoint.demo)
    names = [name.strip() for name in (shown if models is None else models).split(",") if name.strip()]
    if not names:
        raise FlashUError(f"--model names no model: give {shown}, or some of them")
    engines = [open_engine(replace(options, model=name)) for name in names]
    import torch

    from flashu.demo import compare, summary, write_all

    torch.set_num_threads(threads)
    counts = {"images": images, "questions": questions, "edits": edits}
    results = []
    with progress() as bars:
        for engine in engines:
            seconds = 60 * minutes / len(engines)
            results.append(compare(engine, **counts, steps=steps, seed=seed, seconds=seconds, bars=bars))
    write_all(results, output)
    if as_json:
        emit({result.about["model"]: result.to_dict() for result in results})
        return
    out().print(summary(results))
    out().print(f"report: {output / 'report.html'}   pictures: {output / 'contact-sheet.png'}", highlight=False)
