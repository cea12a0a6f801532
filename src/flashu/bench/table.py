"""A report as tables on the terminal: speed, components, use of the machine. Each fits 80 columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from flashu.bench.kinds import OTHER
from flashu.bench.result import Report, RowResult, Spread
from flashu.bench.rows import EXACT, ORIGINAL
from flashu.bench.watch import COMPONENTS
from flashu.plan.table import amount


def tabulated(report: Report) -> RenderableType:
    """All tables, what was measured above them, what the columns mean below."""
    done = [row for row in report.rows if row.seconds is not None]
    return Group(
        Text(title(report)),
        table(["row", "fwd", "s", "low-high", "xorig", "xexact", "per s"], speed, report),
        table(["s by component", *part_names(report)], parts, report),
        table(["row", "FLOPs", "shapes", "matmul", "copy", "memory", "compile"], use, report),
        *([table(["whole run", "s", "composed/whole"], check, report)] if any_whole(done) else []),
        Text(footer(report)),
    )


def table(columns: Sequence[str], cells: Callable[[Report, RowResult], list[str]], report: Report) -> Table:
    made = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for n, name in enumerate(columns):
        made.add_column(name, justify="right" if n else "left", no_wrap=True)
    for row in report.rows:
        if row.seconds is not None:
            made.add_row(row.name, *cells(report, row))
    return made


def speed(report: Report, row: RowResult) -> list[str]:
    assert row.seconds is not None
    return [
        str(row.forwards),
        duration(row.seconds.median),
        between(row.seconds),
        times(report.speedup(row, ORIGINAL)),
        times(report.speedup(row, EXACT)),
        f"{report.units[0] / row.seconds.median:.3g}",
    ]


def parts(report: Report, row: RowResult) -> list[str]:
    return [duration(row.parts.get(name, 0.0)) for name in part_names(report)]


def use(report: Report, row: RowResult) -> list[str]:
    return [
        amount(row.flops).removesuffix("FLOPs"),
        amount(row.flops_predicted).removesuffix("FLOPs"),
        f"{row.flops_per_second / report.ceiling['flops']:.0%}",
        f"{row.bytes_per_second / report.ceiling['bytes']:.0%}",
        memory(row.peak_memory),
        "" if row.compile_seconds is None else duration(row.compile_seconds),
    ]


def check(report: Report, row: RowResult) -> list[str]:
    if row.whole_seconds is None or row.seconds is None:
        return ["", ""]
    return [duration(row.whole_seconds), f"{row.seconds.median / row.whole_seconds:.3f}"]


def any_whole(rows: Sequence[RowResult]) -> bool:
    return any(row.whole_seconds is not None for row in rows)


def part_names(report: Report) -> list[str]:
    """The components that took time in any row, and what is beside them."""
    return [name for name in COMPONENTS if any(row.parts.get(name, 0.0) > 0 for row in report.rows)] + [OTHER]


def title(report: Report) -> str:
    about, machine = report.subject, report.machine
    what = f"{about['model']} {about['task']}, {about['pixels'][1]}x{about['pixels'][0]} px, batch {about['batch']}"
    threads = f" ({machine['threads']} threads)" if about["device"] == "cpu" else ""
    held = f" {about['weights']}" if about.get("weights") else ""
    return f"{what}, {about['dtype']}{held} on {machine['device']}{threads}"


def footer(report: Report) -> str:
    ceiling = report.ceiling
    how = "composed from one forward of each kind" if report.sampled else "whole runs"
    return "\n".join(
        [
            *(f"{row.name}: {row.note}" for row in report.rows if row.note),
            f"fwd: forwards; s: median of {report.repeats} interleaved rounds, {how}; compile: s, apart",
            f"per s: {report.units[1]}; xorig, xexact: times as fast as those rows",
            "FLOPs: counted, and predicted from shapes; like the next two without the autoencoder",
            f"matmul: share of the {amount(ceiling['flops'])}/s of a matrix product of side {ceiling['side']} here",
            f"copy: weights and cache read once a forward, share of the {ceiling['bytes'] / 1e9:.1f} GB/s copied here",
            f"memory: {report.memory_means}",
        ]
    )


def memory(held: int | None) -> str:
    if held is None:
        return ""
    return f"{held / 2**30:.2f} GiB" if held >= 2**29 else f"{held / 2**20:.0f} MiB"


def duration(seconds: float) -> str:
    if seconds >= 100:
        return f"{seconds:.0f}"
    return f"{seconds:.3g}" if seconds >= 1 else f"{seconds:.3f}"


def between(spread: Spread) -> str:
    return f"{duration(spread.low)}-{duration(spread.high)}" if spread.n > 1 else ""


def times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"
