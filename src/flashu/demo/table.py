"""The demo's one table, for the terminal and the report."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from flashu.demo.result import RecipeResult, Result


def cells(result: Result, recipe: RecipeResult) -> dict[str, str]:
    """One recipe's values by their headings."""
    numbers = recipe.numbers()
    edits = (
        {
            "time per edit": milliseconds(numbers["edit_seconds_median"]),
            "edit passes": f"{numbers['edit_decoder_passes']:.0f}",
            "edit score": str(recipe.edit_score),
            "edit speed-up": f"{result.speedup(recipe, 'edit'):.2f}x",
        }
        if recipe.edited
        else {}
    )
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
        **edits,
    }


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms"


def notes(result: Result) -> list[str]:
    """What changed from the baseline to the fast recipe, item by item, and what limits the method on this model."""
    lines = []
    names = {"images": "prompts", "answers": "questions", "edits": "edits"}
    for kind, paired in result.paired(result.fast).items():
        what = names[kind]
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


def summary(results: Sequence[Result]) -> RenderableType:
    """One table, a part for each model, with its notes."""
    parts: list[RenderableType] = []
    table = Table("", box=box.SIMPLE_HEAD, pad_edge=False)
    for recipe in results[0].recipes:
        table.add_column(recipe.name, justify="right", no_wrap=True, style="bold" * (recipe is results[0].fast))
    for result in results:
        columns = [cells(result, recipe) for recipe in result.recipes]
        if len(results) > 1:
            table.add_row(Text(result.about["model"], style="bold"))
        for heading in columns[0]:
            # An interval goes under its value, so that four recipes fit a terminal of 80 columns.
            table.add_row(heading, *(column[heading].replace(" [", "\n[") for column in columns))
        table.add_section()
        about = result.about
        edits = f", {about['edits']} edits" if about["edits"] else ""
        conditions = (
            f"{about['images']} images at {about['steps']} steps{edits} and {about['questions']} questions per recipe, "
            f"one at a time; medians; 95% Wilson intervals; speed-up over {result.base.name}; {about['hardware']}, "
            f"{count(about['threads'], 'thread')}, torch {about['torch']}; {about['seconds']:.0f} s in all"
        )
        of = f"{about['model']}:\n" if len(results) > 1 else ""
        parts.append(Text(of + "\n".join([*notes(result), conditions])))
    return Group(table, *parts)
