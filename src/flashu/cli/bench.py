"""`flashu bench`: the original, the exact runtime and the methods, timed side by side on this machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from flashu.cli import options as opt
from flashu.cli.output import command_line, out, progress, to_json, write, write_text

app = typer.Typer(
    help="Measure the original program's computation, the exact runtime and the methods side by side.",
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
@opt.offers(opt.EngineOptions, "device", "dtype", "pack", "quantize", "offload")
def bench(
    context: typer.Context,
    options: opt.EngineOptions,
    model: Annotated[
        str,
        typer.Option(
            help="A name from `flashu models`, a hub id or a checkpoint folder; or a released size with random "
            "weights, as listed there."
        ),
    ] = "scenes",
    task: Annotated[str, typer.Option(help="t2i (draw), edit, or mmu (answer).")] = "t2i",
    batch: Annotated[int, opt.number("batch_size", "Images or questions at a time.")] = 1,
    threads: Annotated[int | None, opt.number("threads", "CPU threads; torch's own choice if not given.")] = None,
    rows: Annotated[str | None, typer.Option(help="Names, separated by commas; all if not given.")] = None,
    steps: opt.Steps = None,
    new_tokens: Annotated[int | None, opt.number("max_new_tokens", "Tokens of every answer (32).")] = None,
    repeats: Annotated[int, opt.number("repeats", "Interleaved rounds.")] = 3,
    layers: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1000,
            help="With --steps-sampled, of a released size: time so many decoder layers, and compose all of them.",
        ),
    ] = None,
    steps_sampled: Annotated[
        bool, typer.Option("--steps-sampled", help="Time each kind of forward once and compose whole runs from them.")
    ] = False,
    check: Annotated[bool, typer.Option("--check", help="With --steps-sampled: run each row whole, too.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", dir_okay=False, help="Write all numbers here.")] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", file_okay=False, help="Write bench.json and bench.png here.")
    ] = None,
) -> None:
    """Measure the original program's computation, the exact runtime and the methods side by side."""
    if context.invoked_subcommand is not None:
        return
    import torch

    from flashu.bench.measure import bench as measured
    from flashu.bench.plot import plot
    from flashu.bench.rows import choose_rows
    from flashu.bench.subject import open_subject, task_of
    from flashu.bench.table import tabulated
    from flashu.models.place import find_device, find_dtype

    dtype = find_dtype(options.dtype)
    if threads is not None:
        torch.set_num_threads(threads)
    wanted = choose_rows(task_of(task), None if rows is None else [name.strip() for name in rows.split(",")])
    subject = open_subject(
        model,
        task,
        batch=batch,
        device=find_device(options.device),
        dtype=dtype,
        steps=steps,
        new_tokens=new_tokens,
        pack=options.pack,
        quantization=options.quantize,
        offloading=options.offload,
        layers=layers,
    )
    with progress() as bars:
        bar = bars.add_task("", total=None)
        report = measured(
            subject,
            wanted,
            repeats=repeats,
            sampled=steps_sampled,
            check=check,
            say=lambda text: bars.update(bar, description=text),
        )
    report = replace(report, command=command_line())
    out().print(tabulated(report))
    for path in (json_file, None if output is None else output / "bench.json"):
        if path is not None:
            write_text(path, to_json(report.to_dict()) + "\n")
    if output is not None:
        write(output / "bench.png", lambda part: plot(report, part))


@app.command()
def serve(
    model: Annotated[str, typer.Option(help="As for `flashu serve`.")] = "scenes",
    preset: Annotated[str, typer.Option(help="As for `flashu serve`.")] = "exact",
    rates: Annotated[
        str | None,
        typer.Option(help="Requests a second, separated by commas; around what one at a time can if not given."),
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, max=3600, help="How long requests arrive at each rate.")] = 20,
    steps: opt.Steps = None,
    seed: opt.ItemSeed = 0,
    threads: Annotated[int | None, opt.number("threads", "CPU threads of each server.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", dir_okay=False, help="Write all numbers here.")] = None,
) -> None:
    """Load servers from outside: one request at a time, whole requests together, and batching by step, in turns.

    Requests (drawings, questions, edits where the model can) arrive at random, whatever has been answered.
    """
    import torch

    from flashu.bench.serving import bench_serving
    from flashu.bench.serving_table import tabulated
    from flashu.evaluation.machine import conditions

    try:
        asked = None if rates is None else [float(rate) for rate in rates.split(",")]
    except ValueError as error:
        raise typer.BadParameter("numbers separated by commas", param_hint="'--rates'") from error
    if asked is not None and not all(0 < rate <= 10_000 for rate in asked):
        raise typer.BadParameter("between 0 and 10000 requests a second", param_hint="'--rates'")
    with progress() as bars:
        task = bars.add_task("", total=None)
        report = bench_serving(
            model,
            preset,
            seconds=seconds,
            rates=asked,
            steps=steps,
            seed=seed,
            threads=threads,
            say=lambda text: bars.update(task, description=text),
        )
    report.command, report.conditions = command_line(), conditions(torch.device("cpu"))
    out().print(tabulated(report))
    if json_file is not None:
        write_text(json_file, to_json(report.to_dict()) + "\n")
