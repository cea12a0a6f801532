"""`flashu demo`: the same prompts and questions with and without FlashU, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flashu.cli import options as opt
from flashu.cli.opened import open_engine
from flashu.cli.output import emit, out, progress


@opt.offers(opt.EngineOptions, "model", "device")
def demo(
    options: opt.EngineOptions,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the report.")] = Path("out/demo"),
    images: Annotated[int, opt.number("items", "Images per recipe, spread over six categories.", least=6)] = 72,
    questions: Annotated[int, opt.number("items", "Questions per recipe, spread over six kinds.", least=6)] = 120,
    steps: opt.Steps = None,
    seed: opt.ItemSeed = 0,
    threads: Annotated[int, opt.number("threads", "CPU threads; more than one slows a model this small.")] = 1,
    minutes: Annotated[float, opt.number("minutes", "When to stop at the latest, with fewer items if need be.")] = 4,
    as_json: opt.AsJson = False,
) -> None:
    """Draw the same prompts and answer the same questions with and without FlashU; write a report and print a table."""
    engine = open_engine(options)
    import torch

    from flashu.demo import compare, summary, write_all

    torch.set_num_threads(threads)
    with progress() as bars:
        result = compare(
            engine, images=images, questions=questions, steps=steps, seed=seed, seconds=60 * minutes, bars=bars
        )
    write_all(result, output)
    if as_json:
        emit(result.to_dict())
        return
    out().print(summary(result))
    out().print(f"report: {output / 'report.html'}   pictures: {output / 'contact-sheet.png'}", highlight=False)
