"""The options that commands share, and the limits of every number a command takes.

A command that takes a group of options (`EngineOptions`, `DrawingOptions`) names those it offers with `offers`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import Enum
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from flashu.plan.limits import LIMITS as REQUEST_LIMITS
from flashu.plan.limits import Limit

Command = Callable[..., None]
# Besides those of a request, which the engine has too.
LIMITS = REQUEST_LIMITS | {
    "frames": Limit(1, 512, "all frames stand in one row, and the released setting is 32"),
    "items": Limit(1, 10_000, "all of them are listed in memory before the first is begun"),
    "minutes": Limit(0, 10_080, "that is a week"),
    "repeats": Limit(1, 1000, "a median has settled long before"),
    "seed": Limit(0, 2**63 - 1, "a seed has 64 bits"),
    "temperature": Limit(0, 1000, "all tokens are equally likely long before"),
    "threads": Limit(1, 1024, "threads beyond the machine's cores only wait"),
    "torch seed": Limit(0, 2**32 - 1, "torch's CPU generator takes 32 bits"),
}


def number(kind: str, help: str, *names: str, least: int | None = None) -> Any:
    """The option of a number of a kind in `LIMITS`; ``least``: where a command needs more than the kind does."""
    limit = LIMITS[kind]

    def check(value: float | None) -> float | None:
        if value is not None and not limit.least <= value <= limit.most:
            raise typer.BadParameter(f"{value} is beyond {limit.most}: {limit.reason}")
        return value

    least = limit.least if least is None else least
    return typer.Option(*names, min=None if least < 0 else least, callback=check, help=help)


class Task(str, Enum):
    """What a command is about."""

    generation = "generation"
    understanding = "understanding"
    both = "both"

    @property
    def names(self) -> list[Any]:
        """The engine's names of the tasks."""
        return ["generation", "understanding"] if self is Task.both else [self.value]


AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]
Steps = Annotated[int | None, number("steps", "Forwards before the recipe shortens them.")]
MaxNewTokens = Annotated[int | None, number("max_new_tokens", "Most tokens of an answer.")]
ItemSeed = Annotated[int, number("seed", "Of prompts, questions and images.")]


@dataclass(frozen=True)
class EngineOptions:
    """How an engine is opened."""

    model: Annotated[str, typer.Option(help="A name from `flashu models`, a hub id or a checkpoint folder.")] = "scenes"
    preset: Annotated[
        str, typer.Option(help="exact, paper, fast, quality, balanced (tuned: scenes), or a recipe file.")
    ] = "exact"
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; as stored if not given.")] = None
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...; CUDA where there is one if not given.")] = (
        None
    )
    calibration: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="A file `flashu calibrate` wrote.")
    ] = None
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Prune the model's own FFN weights instead of a copy of them.")
    ] = False
    offload: Annotated[
        bool, typer.Option("--offload", help="Keep the weights in main memory; copy each to the device when needed.")
    ] = False
    quantize: Annotated[str | None, typer.Option(help="int8, int8-weight, fp8 or fp8-weight, through torchao.")] = None
    pack: Annotated[
        bool, typer.Option("--pack", help="Copy the weights into the layout that a CPU multiplies fastest in bf16.")
    ] = False


@dataclass(frozen=True)
class DrawingOptions:
    """How images are drawn; None: as the checkpoint says."""

    steps: Steps = None
    guidance: Annotated[float | None, number("guidance", "Guidance scale; 0 or 1 switches guidance off.")] = None
    seed: Annotated[int, number("torch seed", "Seed of the first image; the others count up from it.")] = 0
    height: Annotated[int | None, number("height", "Pixels.")] = None
    width: Annotated[int | None, number("width", "Pixels.")] = None

    @property
    def settings(self) -> dict[str, Any]:
        """All but the seed, as `Engine.generate` and `explain` take them."""
        return {"steps": self.steps, "guidance": self.guidance, "height": self.height, "width": self.width}


def offers(group: type, *names: str, **defaults: Any) -> Callable[[Command], Command]:
    """Replace a command's parameter of type ``group`` by the group's options of these names (none: by all of them).

    ``defaults`` are the command's own. An option that it does not offer has the group's default.
    """
    hints = get_type_hints(group, include_extras=True)
    unknown = {*names, *defaults} - hints.keys()
    if unknown:
        raise ValueError(f"{group.__name__} has no option {', '.join(sorted(unknown))}")
    offered = [
        Parameter(f.name, Parameter.KEYWORD_ONLY, default=defaults.get(f.name, f.default), annotation=hints[f.name])
        for f in fields(group)
        if f.name in names or not names
    ]

    def expand(command: Command) -> Command:
        own = signature(command, eval_str=True)
        [slot] = [p.name for p in own.parameters.values() if p.annotation is group]
        parameters: list[Parameter] = []
        for parameter in own.parameters.values():
            parameters += offered if parameter.name == slot else [parameter.replace(kind=Parameter.KEYWORD_ONLY)]

        def run(**values: Any) -> None:
            given = group(**{p.name: values.pop(p.name) for p in offered})
            command(**values, **{slot: given})

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        return run

    return expand
