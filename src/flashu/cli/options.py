"""Arguments that several commands share."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class Task(str, Enum):
    """What a command is about."""

    generation = "generation"
    understanding = "understanding"
    both = "both"


Model = Annotated[str, typer.Option(help="A name from `flashu models`, a hub id or a checkpoint folder.")]
Preset = Annotated[str, typer.Option(help="exact, paper, fast, quality, balanced (tuned: scenes), or a recipe file.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; as stored if not given.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...; CUDA where there is one if not given.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Forwards before the recipe shortens them.")]
Guidance = Annotated[float | None, typer.Option(min=0, help="Guidance scale; 0 or 1 switches guidance off.")]
Seed = Annotated[int, typer.Option(help="Seed of the first image; the others count up from it.")]
Height = Annotated[int | None, typer.Option(min=1, help="Pixels.")]
Width = Annotated[int | None, typer.Option(min=1, help="Pixels.")]
Tokens = Annotated[int | None, typer.Option(min=1, help="Most tokens of an answer.")]
CalibrationFile = Annotated[
    Path | None, typer.Option("--calibration", exists=True, dir_okay=False, help="A file `flashu calibrate` wrote.")
]
InPlace = Annotated[
    bool, typer.Option("--in-place", help="Prune the model's own FFN weights where they lie, not a copy of them.")
]
Offload = Annotated[
    bool, typer.Option("--offload", help="Keep the weights in main memory; each visits the device when needed.")
]
Pack = Annotated[
    bool, typer.Option("--pack", help="Copy the weights into the layout a CPU's bf16 products are quickest in.")
]
Quantize = Annotated[
    str | None, typer.Option("--quantize", help="int8, int8-weight, fp8 or fp8-weight, through torchao.")
]
