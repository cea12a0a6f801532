"""`flashu study`: trainings that answer a question."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flashu.cli import options as opt
from flashu.cli.output import emit, out, write_text
from flashu.errors import FlashUError

app = typer.Typer(help="Trainings that answer a question.")
PAGE = "report.html"


@app.callback()
def study() -> None:
    """Trainings that answer a question."""


@app.command()
def unimod(
    model: Annotated[str, typer.Option(help="The dense model of a procedural world that every arm starts from.")],
    output: Annotated[Path, typer.Option("-o", "--output", file_okay=False, help="Folder; resumes what is there.")],
    arms: Annotated[
        str, typer.Option(help='Names with commas between; "screen" for a few, "all" for every one.')
    ] = "screen",
    world: Annotated[str, typer.Option(help="The world of the scenes.")] = "scenes",
    updates: Annotated[int, opt.number("items", "Updates of each arm.")] = 200,
    seeds: Annotated[int, opt.number("items", "Runs of each arm.")] = 3,
    rows: Annotated[int, opt.number("items", "Rows of each task in a batch.")] = 16,
    scenes: Annotated[int, opt.number("items", "Scenes to train on.")] = 8000,
    held_out: Annotated[int, opt.number("items", "Batches to measure losses on.")] = 4,
    every: Annotated[int, opt.number("items", "Updates between two measurements.")] = 50,
    rounds: Annotated[int, opt.number("items", "Rounds of timing.")] = 7,
    items: Annotated[int, typer.Option(min=0, max=10_000, help="Items of each benchmark kind; 0 = losses alone.")] = 0,
    lr: Annotated[float, typer.Option(min=0, max=1, help="Learning rate.")] = 3e-4,
    as_json: opt.AsJson = False,
) -> None:
    """Train UniMoD's arms and its baselines from one dense model; count, time and score them; write a page."""
    from flashu.models.registry import open_model
    from flashu.studies.unimod.arms import NAMES, SCREENED
    from flashu.studies.unimod.report import page, summary
    from flashu.studies.unimod.scores import scored_by
    from flashu.studies.unimod.study import Sizes, Study
    from flashu.training.sources import Scenes

    names = {"screen": SCREENED, "all": NAMES}.get(arms) or tuple(name.strip() for name in arms.split(","))
    if "dense" not in names:
        raise FlashUError("every arm is compared with dense: put it among the arms")
    opened = open_model(model)
    each = {"t2i": rows, "mmu": rows}
    trained = Scenes(opened, each, world=world, scenes=scenes, cache=str(_cache(output, "train")))
    held = Scenes(opened, each, seed=1, world=world, scenes=max(200, rows * held_out), pool_seed=77)
    sizes = Sizes(updates, seeds, held_out, every, rounds, lr=lr)
    scored = scored_by(opened, world, items) if items else None
    run = Study(opened, trained, held, output, sizes, scored, lambda line: None if as_json else print(line, flush=True))
    run.run(names)
    write_text(output / PAGE, page(output))
    if as_json:
        emit({"arms": summary(output), "page": str(output / PAGE)})
    else:
        out().print(str(output / PAGE), highlight=False)


@app.command()
def layers(
    device: Annotated[str, typer.Option(help="Where to compute.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="bfloat16 or float32.")] = "bfloat16",
    rows: Annotated[int, opt.number("items", "Rows of a step.")] = 1,
    rounds: Annotated[int, opt.number("items", "Rounds of timing.")] = 7,
) -> None:
    """Seconds of UniMoD's layers at the released sizes, random weights, forward and backward, as JSON."""
    import torch

    from flashu.evaluation.machine import conditions
    from flashu.studies.unimod.layers import table

    kinds = {"bfloat16": torch.bfloat16, "float32": torch.float32}
    if dtype not in kinds:
        raise FlashUError(f"dtype is bfloat16 or float32, not {dtype!r}")
    place = torch.device(device)
    emit(
        {"machine": conditions(place), "dtype": dtype, "rows": rows, "layers": table(place, kinds[dtype], rows, rounds)}
    )


def _cache(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}-codes.pt"
