"""`flashu calibrate`: the statistics that methods need of a model, into a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from flashu.cli import options as opt
from flashu.cli.opened import open_engine
from flashu.cli.output import emit, progress, write
from flashu.errors import CalibrationError, PromptError
from flashu.plan.files import given_text


@opt.offers(opt.EngineOptions, "model", "dtype", "device")
def calibrate(
    options: opt.EngineOptions,
    output: Annotated[Path, typer.Option("-o", "--output", show_default=False, help="The file to write.")],
    task: Annotated[opt.Task, typer.Option(help="What to calibrate.")] = opt.Task.both,
    prompts: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Prompts to draw, one a line.")
    ] = None,
    samples: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help='Questions, one {"image": file, "question": text} a line.'),
    ] = None,
    as_json: opt.AsJson = False,
) -> None:
    """Gather FFN importance and value-norm statistics, by default on one drawing and 20 procedural scenes."""
    drawn = None if prompts is None else read_prompts(prompts)
    pairs = None if samples is None else read_samples(samples)
    opened = open_engine(options)
    from flashu.inference.engine import Engine

    engine = Engine(opened.model, opened.processor)  # without the calibration the checkpoint may have brought
    with progress() as bars:
        for name in task.names:
            bar = bars.add_task(f"calibrating {name}", total=None)
            engine.calibrate(name, prompts=drawn, pairs=pairs)
            bars.update(bar, completed=1, total=1)
    made = engine.calibration
    assert made is not None
    write(output, made.save)
    if not as_json:
        print(f"{output}: {', '.join(made.scores)} of {options.model}")
        return
    report = {
        "file": str(output),
        "model": options.model,
        "model_hash": made.model_hash,
        "masks": {name: list(scores.shape) for name, scores in made.scores.items()},
        "made_from": dict(made.made_from),
        "correlation": None if made.correlation is None else [round(float(c), 4) for c in made.correlation],
    }
    emit(report)


def read_prompts(path: Path) -> list[str]:
    prompts = [line.strip() for line in given_text(path).splitlines() if line.strip()]
    if not prompts:
        raise PromptError(f"{path} holds no prompt")
    return prompts


def read_samples(path: Path) -> list[tuple[Any, str]]:
    """(image file, question) of each line; image files are looked for beside the sample file."""
    pairs: list[tuple[Any, str]] = []
    for number, line in enumerate(given_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            sample = json.loads(line)
            image, question = sample["image"], sample["question"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise CalibrationError(f'{path}, line {number}: is not {{"image": file, "question": text}}') from error
        pairs.append((path.parent / image, question))
    if not pairs:
        raise CalibrationError(f"{path} holds no sample")
    return pairs
