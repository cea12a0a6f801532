"""A report on the terminal, in 80 columns: speed, components, use of the machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from flashu.bench.result import Report, RowResult
from flashu.bench.rows import EXACT, ORIGINAL
from flashu.bench.steps import OTHER
from flashu.evaluation.components import COMPONENTS
from flashu.evaluation.statistics import Spread
from flashu.plan.table import amount


def tabulated(report: Report) -> RenderableType:
    """What was measured, the tables, what the columns mean."""
    measured = [row for row in report.rows if row.seconds is not None]
    tables = [
        table([speed(report, row) for row in measured]),
        table([components(report, row) for row in measured]),
        table([use(report, row) for row in measured]),
        table([check(row) for row in measured if row.whole_seconds is not None]),
    ]
    return Group(Text(title(report)), *(table for table in tables if table.row_count), Text(footer(report)))


def table(rows: Sequence[Mapping[str, str]]) -> Table:
    """Rows of cells by their column."""
    made = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for n, name in enumerate(rows[0] if rows else ()):
        made.add_column(name, justify="right" if n else "left", no_wrap=True)
    for row in rows:
        made.add_row(*row.values())
    return made


def speed(report: Report, row: RowResult) -> dict[str, str]:
    assert row.seconds is not None
    return {
        "row": row.name,
        "fwd": str(row.forwards),
        "s": duration(row.seconds.median),
        "low-high": between(row.seconds),
        "xorig": times(report.speedup(row, ORIGINAL)),
        "xexact": times(report.speedup(row, EXACT)),
        "per s": f"{report.units[0] / row.seconds.median:.3g}",
    }


def components(report: Report, row: RowResult) -> dict[str, str]:
    return {"s by component": row.name} | {name: duration(row.parts.get(name, 0.0)) for name in component_names(report)}


def use(report: Report, row: RowResult) -> dict[str, str]:
    return {
        "row": row.name,
        "FLOPs": amount(row.flops).removesuffix("FLOPs"),
        "shapes": amount(row.flops_predicted).removesuffix("FLOPs") if row.flops_predicted else "",
        "matmul": f"{row.flops_per_second / report.ceiling['flops']:.0%}",
        "copy": f"{row.bytes_per_second / report.ceiling['bytes']:.0%}" if row.bytes else "",
        "memory": memory(row.peak_memory),
        "compile": "" if row.compile_seconds is None else duration(row.compile_seconds),
    }


def check(row: RowResult) -> dict[str, str]:
    assert row.seconds is not None
    assert row.whole_seconds is not None
    ratio = row.seconds.median / row.whole_seconds
    return {"whole run": row.name, "s": duration(row.whole_seconds), "composed/whole": f"{ratio:.3f}"}


def component_names(report: Report) -> list[str]:
    """The components that took time in any row, and the rest."""
    return [name for name in COMPONENTS if any(row.parts.get(name, 0.0) > 0 for row in report.rows)] + [OTHER]


def title(report: Report) -> str:
    about, machine = report.subject, report.machine
    height, width = about["pixels"]
    threads = f" ({machine['threads']} threads)" if about["device"] == "cpu" else ""
    weights = f" {about['weights']}" if about["weights"] else ""
    if about["layers"]:
        weights += f", {about['whole_layers']} decoder layers composed of {about['layers']},"
    return (
        f"{about['model']} {about['task']}, {width}x{height} px, batch {about['batch']}, {about['dtype']}{weights} on "
        f"{machine['device']}{threads}"
    )


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
            f"memory: {report.memory_means}; the model's tensors hold {memory(report.subject['held_bytes'])}",
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
    return f"{duration(spread.least)}-{duration(spread.most)}" if len(spread.values) > 1 else ""


def times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"
