"""`flashu plan`: what a request would compute, before anything runs and without weights."""

from __future__ import annotations

from typing import Annotated

import typer

from flashu.cli import options as opt
from flashu.cli.output import emit, out
from flashu.plan.presets import Target, load_recipe, tuned_on


@opt.offers(opt.EngineOptions, "model", "preset", preset="paper")
@opt.offers(opt.DrawingOptions, "steps", "guidance", "height", "width")
def plan(
    options: opt.EngineOptions,
    drawing: opt.DrawingOptions,
    task: Annotated[opt.Task, typer.Option(help="What to plan.")] = opt.Task.both,
    prompt_tokens: Annotated[int, opt.number("prompt_tokens", "Tokens of the prompt with its special tokens.")] = 16,
    question_tokens: Annotated[int, opt.number("question_tokens", "Text tokens around the image.")] = 32,
    max_new_tokens: opt.MaxNewTokens = None,
    as_json: opt.AsJson = False,
) -> None:
    """Show, forward by forward, what a recipe computes: layers, FFN, head, guidance, tokens and FLOPs."""
    wanted = tuned_on(options.preset, Target(options.model))
    from flashu.models.registry import family_of, is_here, open_model, resolve
    from flashu.models.weights import checkpoint_hash
    from flashu.plan.explain import tabulate

    checkpoint = resolve(options.model)
    sizes = family_of(checkpoint).sizes(checkpoint)
    # A tuned recipe is planned for its own weights only; they are not fetched to find that out.
    known = checkpoint_hash(open_model(options.model)) if wanted is not None and is_here(checkpoint) else None
    recipe = load_recipe(options.preset, Target(options.model, sizes.spec, known))
    settings = drawing.settings | {"prompt_tokens": prompt_tokens, "question_tokens": question_tokens}
    settings["max_new_tokens"] = max_new_tokens
    tables = [tabulate(sizes, recipe, name, **settings) for name in task.names]
    if as_json:
        emit({table.task: table.to_dict() for table in tables})
        return
    for table in tables:
        out().print(table)
        out().print()
