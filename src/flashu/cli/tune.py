"""`flashu tune`: search the fastest recipe that keeps a score."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from flashu.cli import options as opt
from flashu.cli.opened import open_engine
from flashu.cli.output import command_line, emit, out, progress, to_json, without_warnings, write_text
from flashu.errors import FlashUError

FINALISTS = 4
"""Most recipes that are measured on fresh items and by the clock."""


@opt.offers(opt.EngineOptions, "model", "device", "calibration")
def tune(
    budget: Annotated[str, typer.Option(help='"score >= 0.98 of vanilla", or "score >= 0.85".')],
    task: Annotated[opt.Task, typer.Option(help="generation or understanding.")],
    options: opt.EngineOptions,
    trials: Annotated[int, opt.number("items", "Recipes tried, with those already in the study.")] = 40,
    items: Annotated[int, opt.number("items", "Images or questions of a trial that runs to its end.", least=12)] = 72,
    output: Annotated[Path, typer.Option("-o", "--output", help="The preset file.")] = Path("out/preset.json"),
    study: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Keeps the search, so that it can be resumed.")
    ] = None,
    join: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="A preset file that the other task is taken from.")
    ] = None,
    repeats: Annotated[int, opt.number("repeats", "Timings of each finalist.")] = 5,
    seed: Annotated[int, opt.number("seed", "Of items and of the search.")] = 0,
    as_json: opt.AsJson = False,
) -> None:
    """Search the cheapest recipes that keep the budget, measure the best on fresh items and by the clock, and write
    the fastest as a preset file with its evidence."""
    from flashu.studies.tuner.budget import Budget

    wanted = Budget.parse(budget)
    if task is opt.Task.both:
        raise FlashUError("one task is tuned at a time: generation, or understanding")
    engine = open_engine(options)
    from flashu.plan.presets import load_recipe
    from flashu.studies.tuner.tuner import Tuner

    with without_warnings(), progress() as bars:  # recipes that contradict the calibration are tried on purpose
        tuner = Tuner(engine, task.value, wanted, items, seed, bars)
        if join is not None:
            load_recipe(join, tuner.target)  # what cannot be joined shows before the search
        found = tuner.tune(trials, FINALISTS, repeats, study)
    content: dict[str, Any] = found.file(output.stem, found.evidence | {"command": command_line()}, join)
    write_text(output, to_json(content, indent=1) + "\n")
    if as_json:
        emit(content)
        return
    out().print(found.table())
    out().print(str(output), highlight=False)
