"""A report as a plot: one bar per row, stacked by component."""

from __future__ import annotations

from pathlib import Path

from flashu.bench.result import Report
from flashu.bench.rows import ORIGINAL
from flashu.bench.steps import OTHER
from flashu.bench.table import component_names, times, title
from flashu.errors import FlashUError
from flashu.evaluation.components import COMPONENTS

COLOURS = {name: f"C{n}" for n, name in enumerate(COMPONENTS)} | {OTHER: "lightgrey"}


def plot(report: Report, path: Path) -> None:
    """Write the bars as a PNG; needs matplotlib."""
    try:
        import matplotlib
    except ImportError as error:
        raise FlashUError('the plot needs matplotlib: pip install ".[plots]" in a clone of flashu') from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row in report.rows if row.seconds is not None]
    figure, axes = plt.subplots(figsize=(9, 1.4 + 0.36 * len(rows)), layout="constrained")
    left = [0.0] * len(rows)
    for name in component_names(report):
        widths = [max(row.parts.get(name, 0.0), 0.0) for row in rows]
        axes.barh([row.name for row in rows], widths, left=left, label=name, height=0.7, color=COLOURS[name])
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for n, (row, end) in enumerate(zip(rows, left, strict=True)):
        ratio = times(report.speedup(row, ORIGINAL))
        axes.text(end, n, f" {row.forwards} fwd" + (f", {ratio}x" if ratio else ""), va="center", fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.16)
    axes.set_xlabel(f"seconds per request (median of {report.repeats})")
    axes.set_title(title(report), fontsize=9, loc="left")
    axes.legend(fontsize=8, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)
