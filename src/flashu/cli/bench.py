"""`flashu bench`: rows against each other on this machine."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from flashu.cli import options as opt
from flashu.cli.files import write
from flashu.cli.opened import DTYPES, usable
from flashu.cli.terminal import out, progress
from flashu.errors import FlashUError

SHORT = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def bench(
    model: Annotated[
        str,
        typer.Option(
            help="showo2-1.5b, showo2-7b, showo2-1.5b-hq (1024 px) or showo2-1.5b-hq-512, with made-up weights; "
            "scenes, a folder or hub id."
        ),
    ] = "scenes",
    task: Annotated[str, typer.Option(help="t2i (draw) or mmu (answer).")] = "t2i",
    batch: Annotated[int, typer.Option(min=1, help="Images or questions at a time.")] = 1,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; torch's own choice if not given.")] = None,
    pack: opt.Pack = False,
    quantize: opt.Quantize = None,
    offload: opt.Offload = False,
    rows: Annotated[str | None, typer.Option(help="Names, separated by commas; all if not given.")] = None,
    steps: opt.Steps = None,
    new_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of every answer (32).")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Interleaved rounds.")] = 3,
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
    wanted_dtype = full_name(dtype)
    import torch

    from flashu.bench.measure import bench as measured
    from flashu.bench.plot import plot
    from flashu.bench.rows import choose_rows
    from flashu.bench.subject import open_subject, task_of
    from flashu.bench.table import tabulated

    if threads is not None:
        torch.set_num_threads(threads)
    wanted = choose_rows(task_of(task), None if rows is None else [name.strip() for name in rows.split(",")])
    subject = open_subject(
        model,
        task,
        batch=batch,
        device=usable(device),
        dtype=None if wanted_dtype is None else getattr(torch, wanted_dtype),
        steps=steps,
        new_tokens=new_tokens,
        pack=pack,
        quantization=quantize,
        offloading=offload,
    )
    with progress() as bars:
        doing = bars.add_task("", total=None)
        report = measured(
            subject,
            wanted,
            repeats=repeats,
            sampled=steps_sampled,
            check=check,
            say=lambda text: bars.update(doing, description=text),
        )
    report = replace(report, command=shlex.join(["flashu", *sys.argv[1:]]))
    out().print(tabulated(report))
    written = json.dumps(report.to_dict(), indent=2, allow_nan=False) + "\n"
    for path in (json_file, None if output is None else output / "bench.json"):
        if path is not None:
            write(path, lambda part: part.write_text(written))
    if output is not None:
        write(output / "bench.png", lambda part: plot(report, part))


def full_name(dtype: str | None) -> str | None:
    """torch's name of a dtype; bf16, fp16 and fp32 are understood."""
    name = SHORT.get(dtype or "", dtype)
    if name is not None and name not in DTYPES:
        raise FlashUError(f"there is no dtype {dtype!r}: give {', '.join((*DTYPES, *SHORT))}")
    return name
