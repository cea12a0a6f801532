"""A report of served load on the terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.text import Text

from flashu.bench.serving import Load, ServingReport
from flashu.bench.table import table

WORDS = {"none": "one at a time", "request": "whole requests", "step": "by step"}


def tabulated(report: ServingReport) -> RenderableType:
    """The loads, and how step batching compares with one request at a time."""
    steps = "" if report.steps is None else f", {report.steps} steps"
    title = (
        f"{report.model}, preset {report.preset}{steps}; Poisson arrivals for {report.seconds:g} s, seed {report.seed}"
    )
    lines = [
        "Seconds, p50 / p95 / p99, from when a request was due.",
        f"Throughput at saturation, by step over one at a time: {report.gain:.2f}x.",
        *(f"p95 first token at {rate:g}/s: {share:.0%} of one at a time's." for rate, share in report.first_tokens),
    ]
    begun = table([named(load) | first(load) for load in report.loads])
    ended = table([named(load) | ends(load) for load in report.loads])
    return Group(Text(title), begun, ended, Text("\n".join(lines)))


def named(load: Load) -> dict[str, str]:
    return {"batching": WORDS[load.schedule], "asked/s": f"{load.rate:.3g}"}


def first(load: Load) -> dict[str, str]:
    cells = {"done/s": f"{load.throughput:.3g}", "errors": str(load.errors)}
    return cells | {"first token": spread(load.first.get("ask")), "preview": spread(load.first.get("draw"))}


def ends(load: Load) -> dict[str, str]:
    names = {"answer": "ask", "image": "draw", "edit": "edit"}
    return {word: spread(load.latency.get(kind)) for word, kind in names.items()}


def spread(values: Mapping[str, float] | None) -> str:
    return "" if values is None else " ".join(f"{values[name]:.2f}" for name in ("p50", "p95", "p99"))
