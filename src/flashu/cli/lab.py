"""`flashu lab`: the paper's tables and figures, measured anew."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from flashu.cli import options as opt
from flashu.cli.files import write
from flashu.cli.opened import open_engine
from flashu.cli.terminal import emit, out, progress
from flashu.errors import FlashUError

NAMES = (
    "table1", "table2", "table3", "ablation", "pareto", "specialization", "vnorm", "similarity", "sensitivity",
    "components", "cost", "quantization",
)  # fmt: skip
"""Known without importing the lab itself."""
ALL, REPORT = "all", "report"
PAGE = "report.html"


def lab(
    name: Annotated[
        str, typer.Argument(help=f"{', '.join(NAMES)}; {ALL}: every one; {REPORT}: the page of those done.")
    ],
    model: opt.Model = "scenes",
    full: Annotated[bool, typer.Option("--full/--reduced", help="All items, or enough to see the main lines.")] = False,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the results.")] = Path("out/lab"),
    again: Annotated[bool, typer.Option(help="Measure an item anew although its result is there.")] = False,
    seed: Annotated[int, typer.Option(help="Of prompts, questions and images.")] = 0,
    device: opt.Device = None,
    calibration: opt.CalibrationFile = None,
    as_json: opt.AsJson = False,
) -> None:
    """Measure one of the paper's tables or figures; write NAME.json, .csv and .png. An interrupted run is taken up
    where it stopped. Of all items, those a model does not allow are left out with a word why."""
    if name not in (*NAMES, ALL, REPORT):
        raise FlashUError(f"the lab has no {name!r}: it has {', '.join((*NAMES, ALL, REPORT))}")
    if name != REPORT:
        measure(NAMES if name == ALL else (name,), model, full, output, again or name != ALL, seed, device, calibration)
    if name in (ALL, REPORT):
        from flashu.studies.lab.report import report

        page = report(output, NAMES)
        write(output / PAGE, lambda part: part.write_text(page, encoding="utf-8"))
    files = [str(path) for path in sorted(output.glob("*")) if path.suffix in (".json", ".csv", ".png", ".html")]
    if as_json:
        emit({"name": name, "model": model, "files": files})
    else:
        shown = output / PAGE if name in (ALL, REPORT) else output / f"{name}.png"
        out().print(str(shown), highlight=False)


def measure(
    names: tuple[str, ...],
    model: str,
    full: bool,
    output: Path,
    again: bool,
    seed: int,
    device: str | None,
    calibration: Path | None,
) -> None:
    engine = open_engine(model, "exact", None, device, calibration)
    from flashu.evaluation.ledger import Ledger
    from flashu.studies.lab import items
    from flashu.studies.lab.lab import FULL, REDUCED, Lab

    # Recipes are pitted against the model's own statistics here on purpose: no warning at each.
    logging.getLogger("flashu").setLevel(logging.ERROR)
    with Ledger(output / "ledger.jsonl") as ledger, progress() as bars:
        whole = bars.add_task("lab", total=len(names))
        run = Lab(engine, FULL if full else REDUCED, ledger, bars, model, seed)
        for item in names:
            bars.update(whole, description=item)
            try:
                items.measure(item, run, output, again=again)
            except FlashUError as error:
                if len(names) == 1:
                    raise
                print(f"flashu: {item} is left out: {error}", file=sys.stderr)
            bars.advance(whole)
