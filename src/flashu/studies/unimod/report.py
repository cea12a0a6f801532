"""One page of what a study found."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from flashu.errors import FlashUError

STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:3rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;font-size:.85rem;margin:1rem 0}th,td{padding:.3rem .8rem .3rem 0;text-align:right;"
    "border-bottom:1px solid #8884}th:first-child,td:first-child{text-align:left}"
)
DRAWS = 4000


def summary(folder: Path) -> list[dict[str, Any]]:
    """Of every arm: seeds, held-out loss with its change against dense (paired by seed, bootstrap interval), work and
    seconds per update as shares of dense, CPU seconds to dense's final loss."""
    runs = _runs(folder)
    if "dense" not in runs:
        raise FlashUError(f"{folder} has no dense arm yet: everything is compared with it")
    timing = folder / "time.json"
    seconds = json.loads(timing.read_text()) if timing.exists() else {}
    dense = runs["dense"]
    found = []
    for name, own in runs.items():
        seeds = sorted(own.keys() & dense.keys())
        if not seeds:
            continue
        last = [own[s]["curve"][-1]["total"] for s in seeds]
        change = [own[s]["curve"][-1]["total"] - dense[s]["curve"][-1]["total"] for s in seeds]
        low, high = interval(change)
        reached = [_reached(own[s]["curve"], dense[s]["curve"][-1]["total"]) for s in seeds]
        base = [dense[s]["curve"][-1]["cpu"] for s in seeds]
        known = [r / b for r, b in zip(reached, base, strict=True) if r is not None and b]
        everyone = [dense[s]["curve"][-1]["total"] for s in sorted(dense)]
        found.append(
            {
                "arm": name,
                "about": own[seeds[0]]["arm"]["about"],
                "seeds": len(seeds),
                "loss": statistics.fmean(last),
                "change": statistics.fmean(change),
                "low": low,
                "high": high,
                "within dense's seeds": abs(statistics.fmean(change)) <= max(everyone) - min(everyone),
                "flops": own[seeds[0]]["flops"] / dense[seeds[0]]["flops"],
                "seconds": seconds[name]["median"] / seconds["dense"]["median"] if name in seconds else None,
                "time to dense's loss": statistics.median(known) if len(known) == len(seeds) else None,
                "scores": _means([own[s]["scores"] for s in seeds]),
                "threshold": own[seeds[0]]["threshold"],
            }
        )
    return found


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Bootstrap 95 % interval of a mean."""
    if len(values) < 2:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    drawn = np.array(values)[rng.integers(0, len(values), (DRAWS, len(values)))].mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def verdicts(rows: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """The central claims, each with what was found."""
    by_name = {row["arm"]: row for row in rows}

    def lower(a: str, b: str) -> str:
        if a not in by_name or b not in by_name:
            return "not measured"
        gap = by_name[a]["loss"] - by_name[b]["loss"]
        word = "yes" if gap < 0 else "no"
        sure = by_name[a]["high"] < by_name[b]["low"] or by_name[b]["high"] < by_name[a]["low"]
        return f"{word if sure else 'unclear'}: held-out loss {gap:+.4f}"

    return [
        ("Routers of each task beat one router at equal work", lower("unimod", "single-matched")),
        ("Learned routers beat random tokens", lower("unimod", "random")),
        ("Layers by ARank beat the hand schedule", lower("unimod-arank", "unimod")),
        ("Tokens beat layers at equal work", lower("unimod", "fewer-layers")),
    ]


def page(folder: Path) -> str:
    """The report of a study's folder."""
    rows, about = summary(folder), json.loads((folder / "about.json").read_text())
    kept = {name: own[min(own)]["kept"] for name, own in _runs(folder).items() if own[min(own)]["kept"]}
    machine = about["machine"]
    parts = [
        "<h1>UniMoD: what training costs, and what it gives</h1>",
        f"<p>{escape(machine['device'])}, {machine['threads']} threads, load {machine['load']}, torch "
        f"{machine['torch']}, commit {machine['commit']}; model {about['model']}; {escape(str(about['sizes']))}.</p>",
        "<p>Losses are of batches that nothing was trained on; changes are paired by seed, with bootstrap intervals. "
        "Work is counted from the operators of one update, backward as twice the forward. Seconds are medians of "
        "updates taken in turns; time to dense's loss is CPU time as a share of what dense took.</p>",
        _table(
            ["arm", "seeds", "loss", "change", "95 %", "within dense's seeds", "FLOPs", "seconds", "time to its loss"],
            [
                [
                    f"{r['arm']}: {r['about']}", r["seeds"], f"{r['loss']:.4f}", f"{r['change']:+.4f}",
                    f"{r['low']:+.4f} to {r['high']:+.4f}", "yes" if r["within dense's seeds"] else "no",
                    f"{r['flops']:.3f}", _share(r["seconds"]), _share(r["time to dense's loss"]),
                ]
                for r in rows
            ],
        ),
        "<h2>Claims</h2>",
        _table(["claim", "here"], [list(v) for v in verdicts(rows)]),
    ]  # fmt: skip
    scores = sorted({name for r in rows for name in r["scores"]})
    if scores:
        parts += [
            "<h2>Scores</h2>",
            _table(
                ["arm", *scores],
                [[r["arm"], *(f"{r['scores'].get(n, float('nan')):.3f}" for n in scores)] for r in rows],
            ),
        ]
    parts += ["<h2>Tokens that each layer computes</h2>"]
    for name, layers in kept.items():
        kinds = sorted({kind for shares in layers.values() for kind in shares})
        body = [[where, *(_share(shares.get(kind)) for kind in kinds)] for where, shares in layers.items()]
        parts += [f"<h3>{escape(name)}</h3>", _table(["task and layer", *kinds], body)]
    sided = [[r["arm"], task, f"{share:.3f}"] for r in rows for task, share in r["threshold"].items()]
    if sided:
        parts += [
            "<p>How often a probability's side of the threshold is what top-k decides, on rows held out:</p>",
            _table(["arm", "task", "share"], sided),
        ]
    parts += ["<h2>At the released sizes, by formula</h2>", arithmetic(about["table"])]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>UniMoD</title>'
        f"<style>{STYLE}</style>{''.join(parts)}</html>\n"
    )


def arithmetic(table: Sequence[dict[str, Any]]) -> str:
    columns = [name for name in table[0] if name not in ("schedule", "rows")]
    body = [[f"{r['schedule']}, {r['rows']}", *(f"{r[c]:.3f}" for c in columns)] for r in table]
    return (
        "<p>TFLOPs of the mean of one row of each task, forward and backward, attention over whole rows and the head "
        "counted; the other columns are shares of it. The published 51.1 to 43.3 and 89.0 to 53.5 are ratios of .847 "
        "and .601: of layers alone, for rows and a batch that are not said.</p>" + _table(["rows", *columns], body)
    )


def _runs(folder: Path) -> dict[str, dict[int, dict[str, Any]]]:
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for path in sorted(folder.glob("*-[0-9]*.json")):
        run = json.loads(path.read_text())
        found.setdefault(run["arm"]["name"], {})[run["seed"]] = run
    return found


def _reached(curve: Sequence[dict[str, float]], loss: float) -> float | None:
    """CPU seconds until a loss is reached, between two measurements linear; None: never."""
    for before, after in pairwise(curve):
        if after["total"] <= loss:
            fall = before["total"] - after["total"]
            share = (before["total"] - loss) / fall if fall > 0 else 1.0
            return before["cpu"] + max(0.0, min(1.0, share)) * (after["cpu"] - before["cpu"])
    return None


def _means(scores: Sequence[dict[str, float]]) -> dict[str, float]:
    names = set.intersection(*(set(s) for s in scores)) if scores else set()
    return {name: statistics.fmean(s[name] for s in scores) for name in sorted(names)}


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _table(head: Sequence[str], body: Sequence[Sequence[Any]]) -> str:
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    rows = "".join("<tr>" + "".join(f"<td>{escape(str(v))}</td>" for v in row) + "</tr>" for row in body)
    return f"<table><tr>{cells}</tr>{rows}</table>"
