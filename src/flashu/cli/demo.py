"""`flashu demo`: the same prompts and questions with and without FlashU, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flashu.cli import options as opt
from flashu.cli.opened import open_engine
from flashu.cli.terminal import emit, out, progress


def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the report.")] = Path("out/demo"),
    model: opt.Model = "scenes",
    images: Annotated[int, typer.Option(min=6, help="Images per recipe, spread over six categories.")] = 72,
    questions: Annotated[int, typer.Option(min=6, help="Questions per recipe, spread over six kinds.")] = 120,
    steps: opt.Steps = None,
    seed: opt.Seed = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads; more than one slows a model this small.")] = 1,
    minutes: Annotated[float, typer.Option(min=0, help="When to stop at the latest, with fewer items if need be.")] = 4,
    device: opt.Device = None,
    as_json: opt.AsJson = False,
) -> None:
    """Draw the same prompts and answer the same questions with and without FlashU; write a report and print a table."""
    engine = open_engine(model, "exact", None, device)
    import torch

    from flashu.demo import compare, summary, write_all

    torch.set_num_threads(threads)
    settings = {"images": images, "questions": questions, "steps": steps, "seed": seed, "seconds": 60 * minutes}
    with progress() as bars:
        result = compare(engine, bars=bars, **settings)  # type: ignore[arg-type]
    write_all(result, output)
    if as_json:
        emit(result.to_dict())
        return
    out().print(summary(result))
    out().print(f"report: {output / 'report.html'}   pictures: {output / 'contact-sheet.png'}", highlight=False)
