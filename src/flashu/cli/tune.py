"""`flashu tune`: search the fastest recipe that keeps a score."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from flashu.cli import options as opt
from flashu.cli.files import write
from flashu.cli.opened import open_engine
from flashu.cli.terminal import emit, out, progress
from flashu.errors import FlashUError

FINALISTS = 4
"""Most recipes that are measured on fresh items and by the clock."""


def tune(
    budget: Annotated[str, typer.Option(help='"score >= 0.98 of vanilla", or "score >= 0.85".')],
    task: Annotated[opt.Task, typer.Option(help="generation or understanding.")],
    model: opt.Model = "scenes",
    trials: Annotated[int, typer.Option(min=1, help="Recipes tried, with those already in the study.")] = 40,
    items: Annotated[int, typer.Option(min=12, help="Images or questions of a trial that is not stopped early.")] = 72,
    output: Annotated[Path, typer.Option("-o", "--output", help="The preset file.")] = Path("out/preset.json"),
    study: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Keeps the search, so that it can be taken up again.")
    ] = None,
    join: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="A preset file that the other task is taken from.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timings of each finalist.")] = 5,
    seed: Annotated[int, typer.Option(help="Of items and of the search.")] = 0,
    device: opt.Device = None,
    calibration: opt.CalibrationFile = None,
    as_json: opt.AsJson = False,
) -> None:
    """Search the cheapest recipes that keep the budget, measure the best on fresh items and by the clock, and write
    the fastest as a preset file with its evidence."""
    from flashu.studies.tuner.budget import Budget

    wanted = Budget.parse(budget)
    if task is opt.Task.both:
        raise FlashUError("one task is tuned at a time: generation, or understanding")
    engine = open_engine(model, "exact", None, device, calibration)
    from flashu.studies.tuner.tuner import Tuner

    logging.getLogger("flashu").setLevel(logging.ERROR)  # recipes that contradict the calibration are tried on purpose
    with progress() as bars:
        found = Tuner(engine, task.value, wanted, items, seed, model, bars).tune(trials, FINALISTS, repeats, study)
    evidence = found.evidence | {"command": command(sys.argv)}
    content: dict[str, Any] = found.file(output.stem, evidence, join)
    write(output, lambda part: part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8"))
    if as_json:
        emit(content)
        return
    out().print(found.table())
    out().print(str(output), highlight=False)


def command(words: list[str]) -> str:
    """The command line as one would type it."""
    import shlex

    return shlex.join(["flashu", *words[1:]])
