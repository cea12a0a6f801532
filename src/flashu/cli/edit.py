"""`flashu edit`: an image changed as instructions say."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from flashu.cli import options as opt
from flashu.cli.opened import open_engine
from flashu.cli.output import bar, emit, image_paths, progress, write_image


@opt.offers(opt.EngineOptions)
def edit(
    image: Annotated[Path, typer.Argument(exists=True, dir_okay=False, show_default=False, help="An image.")],
    instructions: Annotated[
        list[str],
        typer.Argument(
            metavar="INSTRUCTION...", show_default=False, help="What to change; several, one after another."
        ),
    ],
    options: opt.EngineOptions,
    output: Annotated[Path, typer.Option("-o", "--output", help="A file, or a folder for several.")] = Path("out.png"),
    steps: opt.Steps = None,
    text_guidance: Annotated[float | None, opt.number("guidance", "Scale of the guidance by the instruction.")] = None,
    image_guidance: Annotated[float | None, opt.number("guidance", "Scale of the guidance by the image.")] = None,
    seed: Annotated[int, opt.number("torch seed", "Seed of the first edit; the others count up from it.")] = 0,
    think: Annotated[bool, typer.Option("--think", help="Think in text first, for models trained to.")] = False,
    adapter: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="A folder of weights to denoise with.")
    ] = None,
    as_json: opt.AsJson = False,
) -> None:
    """Change an image. Several instructions are followed in turn, each on what the one before drew."""
    paths = image_paths(output, len(instructions))
    engine = open_engine(options, adapter=adapter)
    own: dict[str, Any] = {} if image_guidance is None else {"image_guidance": image_guidance}
    session = engine.editing(str(image))
    files = []
    with progress() as bars:
        edits, forwards = bar(bars, "edits", len(instructions)), bar(bars, "forwards")
        for number, (instruction, path) in enumerate(zip(instructions, paths, strict=True)):
            made = session.edit(
                instruction,
                seed=seed + number,
                steps=steps,
                text_guidance=text_guidance,
                think=think,
                on_step=lambda step, *_: forwards(step.index + 1, step.total),
                on_text=lambda _, piece: print(piece, end="", file=sys.stderr, flush=True),
                **own,
            )
            about = {"instruction": instruction, "seed": seed + number, "model": options.model}
            write_image(made.images[0], path, about | {"recipe": engine.recipe.name})
            files.append({"file": str(path), "instruction": instruction, "thought": "".join(made.thoughts)})
            edits(number + 1, len(instructions))
    if as_json:
        emit({"model": options.model, "recipe": engine.recipe.name, "images": files})
        return
    for entry in files:
        print(entry["file"])
