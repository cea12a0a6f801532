"""`flashu plan`: what a request would compute, before anything runs and without weights."""

from __future__ import annotations

from typing import Annotated

import typer

from flashu.cli import options as opt
from flashu.cli.terminal import emit, out
from flashu.plan.recipe import load_recipe


def plan(
    model: opt.Model = "scenes",
    preset: opt.Preset = "paper",
    task: Annotated[opt.Task, typer.Option(help="What to plan.")] = opt.Task.both,
    steps: opt.Steps = None,
    guidance: opt.Guidance = None,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the prompt with its marks.")] = 16,
    question_tokens: Annotated[int, typer.Option(min=1, help="Text tokens around the image.")] = 32,
    max_new_tokens: opt.Tokens = None,
    height: opt.Height = None,
    width: opt.Width = None,
    as_json: opt.AsJson = False,
) -> None:
    """Show, forward by forward, what a recipe computes: layers, FFN, head, guidance, tokens and FLOPs."""
    recipe = load_recipe(preset, model)
    from flashu.cli.sizes import sizes_of
    from flashu.plan.explain import tabulate

    sizes = sizes_of(model)
    tables = [
        tabulate(
            sizes,
            recipe,
            name,
            steps=steps,
            guidance=guidance,
            prompt_tokens=prompt_tokens,
            question_tokens=question_tokens,
            max_new_tokens=max_new_tokens,
            height=height,
            width=width,
        )
        for name in ("generation", "understanding")
        if task.value in (name, "both")
    ]
    if as_json:
        emit({table.task: table.to_dict() for table in tables})
        return
    for table in tables:
        out().print(table)
        out().print()
