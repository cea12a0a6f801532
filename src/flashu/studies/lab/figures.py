"""The lab's figures, each drawn from a result's rows alone (and the tensors given)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from flashu.studies.lab.result import Result, Row

INK, FAINT = "#1b1f24", "#9aa4ae"
COLOURS = ("#2457c5", "#d1495b", "#2a9d6f", "#e09f1f", "#7b4fb5", "#4a90a4", "#8c564b", "#6b7280")
KINDS = {
    "vanilla": INK, "FlashU": COLOURS[1], "tuned preset": COLOURS[4], "fewer Euler steps": COLOURS[0],
    "better solver": COLOURS[5], "cache": COLOURS[3], "guidance": COLOURS[2], "pruning": FAINT,
}  # fmt: skip
"""Colours of the kinds of case."""
WIDTH = 11.0
"""Inches of every figure, so that letters are equally large throughout a report."""
STYLE: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "legend.fontsize": 8,
}


# -- parts that figures share ------------------------------------------------------------------------------------------
def groups(rows: Iterable[Row], column: str) -> dict[Any, list[Row]]:
    """Rows by their value in a column, in order of appearance."""
    found: dict[Any, list[Row]] = {}
    for row in rows:
        found.setdefault(row[column], []).append(row)
    return found


def mean_by_layer(rows: Iterable[Row]) -> dict[str, dict[int, float]]:
    """Similarity by kind of token and layer, averaged over forwards."""
    return {
        kind: {layer: fmean(r["similarity"] for r in same) for layer, same in groups(own, "layer").items()}
        for kind, own in groups(rows, "token").items()
    }


def panels(figure: Figure, rows: Iterable[Row], column: str) -> list[tuple[Axes, Any, list[Row]]]:
    """Axes side by side, one for each value of a column and titled by it, with their rows."""
    parts = groups(rows, column)
    found = list(zip(figure.subplots(1, len(parts), squeeze=False)[0], parts, parts.values(), strict=True))
    for axes, name, _ in found:
        axes.set_title(name)
    return found


def intervals(axes: Axes, at: Sequence[float], rows: Sequence[Row], column: str = "Overall", **style: Any) -> None:
    """A column's values over ``at`` with their intervals."""
    values = [r[column] for r in rows]
    below = [r[column] - r[f"{column} low"] for r in rows]
    above = [r[f"{column} high"] - r[column] for r in rows]
    axes.errorbar(at, values, yerr=[below, above], capsize=2, **style)


def score_lines(axes: Axes, rows: Iterable[Row], key: str, x: str, baseline: float) -> None:
    """Overall scores over ``x``, one line for each ``key``, and a dotted one for the baseline; random choices share
    one colour and label."""
    colours, shared = iter(COLOURS), "random, each a seed"
    for name, unsorted in groups(rows, key).items():
        own = sorted(unsorted, key=lambda r: r[x])
        if name.startswith("random"):
            colour, label, shared = FAINT, shared, ""
        else:
            colour, label = next(colours), name
        intervals(axes, [r[x] for r in own], own, marker="o", ms=4, color=colour, label=label)
    axes.axhline(baseline, color=INK, lw=0.8, ls=":")
    axes.set_ylabel("overall score (dots: vanilla)")
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.18), ncols=2)


# -- one for each item -------------------------------------------------------------------------------------------------
def table(figure: Figure, result: Result) -> None:
    """Bars per column with intervals."""
    axes, rows = figure.subplots(), result.rows
    columns = [c for c in rows[0] if f"{c} n" in rows[0]]
    width = 0.8 / len(rows)
    for k, row in enumerate(rows):
        label = f"{row['method']}\n{row['speed-up']:.2f}x, {row['over original']:.2f}x the original"
        for x, column in enumerate(columns):
            at = x + (k - (len(rows) - 1) / 2) * width
            axes.bar(at, row[column], 0.9 * width, color=COLOURS[k], label="" if x else label)
            intervals(axes, [at], [row], column, fmt="none", ecolor="#00000088")
    axes.set_xticks(range(len(columns)), [f"{c}\nn = {rows[0][f'{c} n']}" for c in columns])
    axes.set(ylim=(0, 1.02), ylabel="score")
    axes.legend(ncols=len(rows), loc="lower center", bbox_to_anchor=(0.5, 1.0))


def ablation(figure: Figure, result: Result) -> None:
    """Score against speed-up of every variant, one panel per task."""
    for axes, _, rows in panels(figure, result.rows, "task"):
        for k, row in enumerate(rows):
            colour = FAINT if k == 0 else COLOURS[(k - 1) % len(COLOURS)]
            intervals(axes, [row["speed-up"]], [row], fmt="o", color=colour, label=row["method"])
        axes.set(xlabel="speed-up, batch 1", ylabel="overall score")
        axes.legend(loc="upper left", bbox_to_anchor=(0, -0.13), ncols=3)


def sensitivity(figure: Figure, result: Result) -> None:
    """Score (line with interval) and speed-up (dashed) over each setting."""
    for number, (axes, name, rows) in enumerate(panels(figure, result.rows, "setting"), 8):
        fast = axes.twinx()
        for colour, (kind, own) in zip(COLOURS, groups(rows, "guidance").items(), strict=False):
            x = [r["value"] for r in own]
            intervals(axes, x, own, color=colour, marker="o", label=f"score, {kind} guidance")
            fast.plot(x, [r["speed-up"] for r in own], color=colour, marker="s", ls="--", alpha=0.6)
        axes.axhline(result.about["vanilla"], color=INK, lw=0.8, ls=":")
        axes.set(title=f"Figure {number}", xlabel=name, ylabel="dense-prompt score (dots: vanilla)")
        fast.set_ylabel("speed-up (dashed)")
        axes.legend()


def quantization(figure: Figure, result: Result) -> None:
    """Overall scores with intervals, one panel per task."""
    for axes, _, rows in panels(figure, result.rows, "task"):
        for k, row in enumerate(rows):
            intervals(axes, [k], [row], fmt="o", color=FAINT if k == 0 else COLOURS[k - 1])
            axes.annotate(f"{row['weights MB']:.3g} MB", (k, row["Overall"]), (6, -3), textcoords="offset points")
        axes.set_xticks(range(len(rows)), [row["method"] for row in rows])
        axes.set(xlim=(-0.5, len(rows)), ylabel="overall score")


def cost(figure: Figure, result: Result) -> None:
    """Predicted against counted, both tasks."""
    for axes, _, rows in panels(figure, result.rows, "task"):
        for name, shift, colour in (("counted", -0.2, COLOURS[0]), ("predicted", 0.2, COLOURS[3])):
            at = [y + shift for y in range(len(rows))]
            axes.barh(at, [r[f"{name} GFLOPs"] for r in rows], 0.38, color=colour, label=name)
        axes.set_yticks(range(len(rows)), [r["recipe"] for r in rows])
        axes.invert_yaxis()
        axes.set_xlabel("GFLOPs per request")
        axes.legend()


def components(figure: Figure, result: Result) -> None:
    """Stacked time per image."""
    axes = figure.subplots()
    left = dict.fromkeys(("vanilla", "FlashU"), 0.0)
    for colour, row in zip(COLOURS, result.rows, strict=False):
        values = [row[f"{name} ms"] for name in left]
        axes.barh(list(left), values, left=list(left.values()), color=colour, label=row["component"])
        left = {name: left[name] + value for name, value in zip(left, values, strict=True)}
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds per image, batch 1, timers included")
    axes.legend(ncols=5, loc="upper center", bbox_to_anchor=(0.5, 1.25))


def similarity(figure: Figure, result: Result) -> None:
    """Generation by step and layer; both tasks by layer and kind of token."""
    heat, *curves = figure.subplots(1, 3)
    tasks = groups(result.rows, "task")
    image = [r for r in tasks["generation"] if r["token"] == "image"]
    grid = [[r["similarity"] for r in own] for _, own in sorted(groups(image, "layer").items())]
    extent = (0, len(grid[0]), 0.5, len(grid) + 0.5)
    figure.colorbar(heat.imshow(grid, aspect="auto", origin="lower", extent=extent), ax=heat)
    heat.set(title="generation, image tokens", xlabel="forward", ylabel="layer")
    for axes, (task, rows) in zip(curves, tasks.items(), strict=True):
        for colour, (kind, curve) in zip(COLOURS, mean_by_layer(rows).items(), strict=False):
            axes.plot(list(curve), list(curve.values()), marker="o", ms=3, color=colour, label=kind)
        axes.set(title=task, xlabel="layer", ylabel="cosine of input and output", ylim=(None, 1))
        axes.legend()


def specialization(errors: Sequence[Tensor], roles: dict[str, Tensor], figure: Figure, result: Result) -> None:
    """Scatter of the two tasks' errors by role; scores of every mask over the pruning ratio."""
    scatter, *scores = figure.subplots(1, 3)
    x, y = (e.clamp_min(1e-12).log10() for e in errors)
    for (role, here), colour in zip(roles.items(), (COLOURS[0], COLOURS[1], COLOURS[4], FAINT), strict=True):
        scatter.scatter(x[here], y[here], s=3, color=colour, label=role, linewidths=0, alpha=0.6)
    scatter.set(xlabel="log10 error if zeroed, generation", ylabel="log10 error if zeroed, understanding")
    scatter.legend(markerscale=4)
    parts = groups(result.rows, "part")
    for axes, (task, vanilla) in zip(scores, result.about["vanilla"].items(), strict=True):
        score_lines(axes, parts[task], "mask", "ratio", vanilla)
        axes.set(title=task, xlabel="share of neurons pruned, all forwards")


def vnorm(points: Sequence[Tensor], figure: Figure, result: Result) -> None:
    """Attention and norm in one layer; their correlation by layer; answers under every choice of tokens."""
    scatter, layers, scores = figure.subplots(1, 3)
    scatter.scatter(*points, s=6, color=COLOURS[0], alpha=0.5, linewidths=0)
    title = f"visual tokens in layer {result.about['layer']}"
    scatter.set(title=title, xlabel="attention received", ylabel="value norm")
    parts = groups(result.rows, "part")
    rows = parts["correlation"]
    at = [r["layer"] for r in rows]
    layers.bar(at, [r["Spearman"] for r in rows], color=COLOURS[3])
    intervals(layers, at, rows, "Spearman", fmt="none", ecolor=INK)
    layers.axhline(0, color=INK, lw=0.8)
    layers.set(xlabel="layer", ylabel="rank correlation, mean over samples")
    score_lines(scores, parts["pruning"], "method", "ratio", result.about["vanilla"])
    scores.set_xlabel(f"share of visual tokens dropped after layer {result.about['layer']}")


def pareto(figure: Figure, result: Result) -> None:
    """Overall score over speed-up, a panel per task; the frontier joined by a line, its members numbered and named."""
    tasks = groups(result.rows, "task")
    grid = figure.subplots(len(tasks), 2, width_ratios=(3, 1.25), squeeze=False)
    for (axes, names), (task, unsorted) in zip(grid, tasks.items(), strict=True):
        rows = sorted(unsorted, key=lambda r: r["speed-up"])
        named = [r for r in rows if r["frontier"] or r["kind"] in ("FlashU", "tuned preset")]
        _frontier(axes, rows, named)
        axes.set_title(task, fontweight="bold", pad=24)
        names.axis("off")
        original = rows[0]["original"]
        lines = [
            "* on the frontier",
            *(
                f"{k:>2}{'*' if r['frontier'] else ' '} {r['method']}: {r['speed-up']:.2f}x, {r['Overall']:.3f}"
                for k, r in enumerate(named, 1)
            ),
            f"\nThe original program: {1 / original:.2f}x,\nso ratios over it are\n{original:.2f} times these.",
        ]
        names.text(0, 1, "\n".join(lines), va="top", fontsize=8.5, linespacing=1.5, transform=names.transAxes)


def _frontier(axes: Axes, rows: Sequence[Row], named: Sequence[Row]) -> None:
    from matplotlib.ticker import MaxNLocator, NullFormatter

    front = [r for r in rows if r["frontier"]]
    axes.plot([r["speed-up"] for r in front], [r["Overall"] for r in front], color=INK, lw=1, label="frontier")
    for kind, own in groups(rows, "kind").items():
        intervals(axes, [r["speed-up"] for r in own], own, fmt="o", color=KINDS[kind], elinewidth=0.6, label=kind)
    for k, row in enumerate(named, 1):  # numbered along the upper edge, a thin line to each point
        axes.annotate(
            str(k),
            (row["speed-up"], row["Overall"]),
            ((k - 0.5) / len(named), 1.02),
            textcoords="axes fraction",
            ha="center",
            color=KINDS[row["kind"]],
            arrowprops={"arrowstyle": "-", "color": KINDS[row["kind"]], "lw": 0.6, "alpha": 0.6, "shrinkB": 3},
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(8))
    axes.xaxis.set_major_formatter("{x:g}x")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="speed-up over the exact recipe, batch 1", ylabel="overall score, 95 % interval")
    axes.grid(axis="y", color="#eeeeee")
    axes.legend(ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.13))
