"""`flashu plan`: what a request would compute, before anything runs and without weights."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any

import typer

from flashu.cli import options as opt
from flashu.cli.output import emit, out
from flashu.plan.presets import Target, load_recipe, tuned_on


class Planned(str, Enum):
    """What a request is for."""

    generation = "generation"
    edit = "edit"
    understanding = "understanding"
    both = "both"

    @property
    def names(self) -> dict[str, Any]:
        """The task of each table, by its name."""
        names = ["generation", "understanding"] if self is Planned.both else [self.value]
        return {name: "generation" if name == "edit" else name for name in names}


@opt.offers(opt.EngineOptions, "model", "preset", preset="paper")
@opt.offers(opt.DrawingOptions, "steps", "guidance", "height", "width")
def plan(
    options: opt.EngineOptions,
    drawing: opt.DrawingOptions,
    task: Annotated[Planned, typer.Option(help="What to plan.")] = Planned.both,
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
    tables = {name: tabulate(sizes, recipe, of, edit=name == "edit", **settings) for name, of in task.names.items()}
    if as_json:
        emit({name: table.to_dict() for name, table in tables.items()})
        return
    for table in tables.values():
        out().print(table)
        out().print()
