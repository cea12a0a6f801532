"""The demo's one table, for the terminal and the report."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from flashu.demo.result import RecipeResult, Result


def cells(result: Result, recipe: RecipeResult) -> dict[str, str]:
    """One recipe's values by their headings."""
    numbers = recipe.numbers()
    return {
        "time per image": milliseconds(numbers["image_seconds_median"]),
        "forwards": f"{numbers['image_forwards']:.0f}",
        "decoder passes": f"{numbers['image_decoder_passes']:.0f}",
        "GFLOPs per image": f"{numbers['image_gflops_mean']:.3g}",
        "generation score": str(recipe.score),
        "image speed-up": f"{result.speedup(recipe, 'image'):.2f}x",
        "time per answer": milliseconds(numbers["answer_seconds_median"]),
        "answer accuracy": str(recipe.accuracy),
        "answer speed-up": f"{result.speedup(recipe, 'answer'):.2f}x",
    }


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms"


def notes(result: Result) -> list[str]:
    """What changed from the baseline to the fast recipe, item by item, and what limits the method on this model."""
    lines = []
    for what, paired in zip(("prompts", "questions"), result.paired(result.fast).values(), strict=True):
        p = "p < 0.001" if paired.p < 0.001 else f"p = {paired.p:.2g}"
        lines.append(
            f"{what}: {result.fast.name} lost {paired.lost} and won {paired.won} against {result.base.name}, "
            f"{paired.same} unchanged (McNemar {p})"
        )
    for pruned in result.about["token_pruning"]:
        fits = "as the paper found" if pruned["fits"] else "the other side would fit it better"
        lines.append(
            f"token pruning drops the {pruned['side']} value norms after layer {pruned['layer']}, where attention and "
            f"norm correlate by {pruned['correlation']:+.2f} on this model: {fits}"
        )
    return lines


def count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def summary(result: Result) -> RenderableType:
    """The table with its notes."""
    about = result.about
    columns = [cells(result, recipe) for recipe in result.recipes]
    table = Table("", box=box.SIMPLE_HEAD, pad_edge=False)
    for recipe in result.recipes:
        table.add_column(recipe.name, justify="right", no_wrap=True, style="bold" if recipe is result.fast else "")
    for heading in columns[0]:
        # An interval goes under its value, so that four recipes fit a terminal of 80 columns.
        table.add_row(heading, *(column[heading].replace(" [", "\n[") for column in columns))
    conditions = (
        f"{about['images']} images at {about['steps']} steps and {about['questions']} questions per recipe, one at "
        f"a time; medians; 95% Wilson intervals; speed-up over {result.base.name}; {about['hardware']}, "
        f"{count(about['threads'], 'thread')}, torch {about['torch']}; {about['seconds']:.0f} s in all"
    )
    return Group(table, Text("\n".join([*notes(result), conditions])))
