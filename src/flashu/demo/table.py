"""The demo's one table, for the terminal."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from flashu.demo.result import Result, Side

HEADINGS = (
    "time per image",
    "forwards",
    "decoder passes",
    "GFLOPs per image",
    "generation score",
    "image speed-up",
    "time per answer",
    "answer accuracy",
    "answer speed-up",
)


def cells(result: Result, side: Side) -> list[str]:
    """One recipe's values under `HEADINGS`; empty where it answers exactly as another recipe does."""
    numbers = side.numbers()
    faster = result.answer_speedup(side)
    return [
        milliseconds(side.image_seconds),
        f"{numbers['image_forwards']:.0f}",
        f"{numbers['image_decoder_passes']:.0f}",
        f"{numbers['image_gflops_mean']:.3g}",
        str(side.score),
        f"{result.image_speedup(side):.2f}x",
        milliseconds(side.answer_seconds),
        "" if side.accuracy is None else str(side.accuracy),
        "" if faster is None else f"{faster:.2f}x",
    ]


def milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:.0f} ms"


def paired_lines(result: Result) -> list[str]:
    """What changed from the baseline to the fast recipe, item by item."""
    images, answers = result.images_paired(result.fast), result.answers_paired(result.fast)
    pairs = [("prompts", images)] + ([] if answers is None else [("questions", answers)])
    return [
        f"{what}: {result.fast.name} lost {p.lost} and won {p.won} against {result.baseline}, "
        f"{p.same} unchanged (McNemar {p_value(p.p)})"
        for what, p in pairs
    ]


def p_value(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def notes(result: Result) -> list[str]:
    """What the reader should know of this model before believing the numbers."""
    return [
        f"token pruning drops the {pruned['side']} value norms after layer {pruned['layer']}, where attention and norm "
        f"correlate by {pruned['correlation']:+.2f} on this model: "
        + ("as the paper found" if pruned["fits"] else "the other side would fit it better")
        for pruned in result.about["token_pruning"]
    ]


def summary(result: Result) -> RenderableType:
    """The table with its small print."""
    about = result.about
    table = Table("", box=box.SIMPLE_HEAD, pad_edge=False)
    for side in result.sides:
        table.add_column(side.name, justify="right", no_wrap=True, style="bold" if side is result.fast else "")
    for heading, row in zip(HEADINGS, zip(*(cells(result, side) for side in result.sides), strict=True), strict=True):
        # An interval goes under its value, so that four recipes fit a terminal of 80 columns.
        table.add_row(heading, *(cell.replace(" [", "\n[") for cell in row))
    lines = [
        *paired_lines(result),
        *notes(result),
        f"{about['images']} images at {about['steps']} steps and {about['questions']} questions per recipe, one at "
        f"a time; medians; 95% Wilson intervals; speed-up over {result.baseline}; {about['hardware']}, "
        f"{count(about['threads'], 'thread')}, torch {about['torch']}; {about['seconds']:.0f} s in all",
    ]
    return Group(table, Text("\n".join(lines)))
