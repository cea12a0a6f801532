"""`flashu lab`: the paper's tables and figures, measured anew."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from flashu.cli import options as opt
from flashu.cli.opened import open_engine
from flashu.cli.output import emit, out, progress, without_warnings, write_text
from flashu.errors import FlashUError

NAMES = (
    "table1", "table2", "table3", "ablation", "pareto", "specialization", "vnorm", "similarity", "sensitivity",
    "components", "cost", "quantization",
)  # fmt: skip
"""Known without importing the lab itself."""
ALL, REPORT = "all", "report"
PAGE = "report.html"


@opt.offers(opt.EngineOptions, "model", "device", "calibration")
def lab(
    name: Annotated[
        str, typer.Argument(help=f"{', '.join(NAMES)}; {ALL}: every one; {REPORT}: the page of those done.")
    ],
    options: opt.EngineOptions,
    full: Annotated[bool, typer.Option("--full/--reduced", help="All items, or enough to see the main lines.")] = False,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the results.")] = Path("out/lab"),
    again: Annotated[bool, typer.Option(help="Measure an item anew although its result is there.")] = False,
    seed: opt.ItemSeed = 0,
    as_json: opt.AsJson = False,
) -> None:
    """Measure one of the paper's tables or figures; write NAME.json, .csv and .png. An interrupted run resumes where it
    stopped. With "all", those that a model does not allow are skipped, with the reason."""
    if name not in (*NAMES, ALL, REPORT):
        raise FlashUError(f"the lab has no {name!r}: it has {', '.join((*NAMES, ALL, REPORT))}")
    if name != REPORT:
        measure(options, NAMES if name == ALL else (name,), full, output, again or name != ALL, seed)
    if name in (ALL, REPORT):
        from flashu.studies.lab.report import report

        write_text(output / PAGE, report(output, NAMES))
    files = [str(path) for path in sorted(output.glob("*")) if path.suffix in (".json", ".csv", ".png", ".html")]
    if as_json:
        emit({"name": name, "model": options.model, "files": files})
    else:
        shown = output / PAGE if name in (ALL, REPORT) else output / f"{name}.png"
        out().print(str(shown), highlight=False)


def measure(
    options: opt.EngineOptions, names: tuple[str, ...], full: bool, output: Path, again: bool, seed: int
) -> None:
    engine = open_engine(options)
    from flashu.evaluation.ledger import Ledger
    from flashu.studies.lab import items
    from flashu.studies.lab.lab import FULL, REDUCED, Lab

    # Recipes are pitted against the model's own statistics here on purpose: no warning at each.
    with without_warnings(), Ledger(output / "ledger.jsonl") as ledger, progress() as bars:
        bar = bars.add_task("lab", total=len(names))
        run = Lab(engine, FULL if full else REDUCED, ledger, bars, seed)
        for item in names:
            bars.update(bar, description=item)
            try:
                items.measure(item, run, output, again=again)
            except FlashUError as error:
                if len(names) == 1:
                    raise
                print(f"flashu: {item} is skipped: {error}", file=sys.stderr)
            bars.advance(bar)
