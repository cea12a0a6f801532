"""One self-contained HTML page of everything the lab has found: claimed, measured, holds here?"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from flashu.errors import FlashUError

MARKS = {"yes": "holds", "no": "does not hold", "unclear": "unclear"}
COUNTED = ("images", "questions", "samples", "n")
STYLE = """
:root { --ink: #1b1f24; --faint: #66707a; --line: #e3e6ea; --paper: #fcfcfa; --card: #fff; --accent: #2457c5; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --faint: #9aa4ae; --line: #353b42; --paper: #16191d;
  --card: #1d2126; --accent: #8fb0ff; } }
* { box-sizing: border-box; } html { scroll-behavior: smooth; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
.page { display: grid; grid-template-columns: 13rem minmax(0, 64rem); gap: 3rem; justify-content: center;
  padding: 3rem 1.5rem 6rem; }
nav { position: sticky; top: 2rem; align-self: start; font-size: .88rem; max-height: 95vh; overflow-y: auto; }
nav ol { list-style: none; margin: 0; padding: 0; } nav li { margin: .1rem 0; }
nav a { display: flex; gap: .5rem; align-items: center; justify-content: space-between; text-decoration: none;
  color: var(--faint); padding: .15rem .5rem; border-radius: 6px; } nav a:hover { background: var(--line); }
i { display: inline-block; width: .6em; height: .6em; border-radius: 50%; margin-left: .15em; }
i.yes { background: #2a9d6f; } i.no { background: #d1495b; } i.unclear { background: #b4bbc3; }
h1 { font-size: 2.2rem; letter-spacing: -.02em; margin: 0 0 .3rem; }
h2 { font-size: 1.35rem; letter-spacing: -.01em; margin: 0 0 .8rem; scroll-margin-top: 1rem; }
section { margin-top: 3.5rem; padding-top: 2rem; border-top: 1px solid var(--line); }
p, summary { color: var(--faint); max-width: 46rem; } summary { cursor: pointer; margin: 1rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .86rem; }
th { text-align: left; font-weight: 600; color: var(--faint); border-bottom: 2px solid var(--line); }
th, td { padding: .45rem .9rem .45rem 0; vertical-align: top; } td { border-bottom: 1px solid var(--line); }
td:last-child, th:last-child { padding-right: 0; } tr:last-child td { border-bottom: 0; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.claims td:nth-child(1) { width: 36%; font-weight: 500; } .claims td:last-child { text-align: right; width: 8rem; }
.wide { overflow-x: auto; } .data { font-size: .78rem; } .data td:first-child { white-space: nowrap;
  position: sticky; left: 0; background: var(--paper); }
.data small { display: block; } img { display: block; width: 100%; background: #fff; border: 1px solid var(--line);
  border-radius: 10px; padding: .6rem; margin: 1rem 0; }
.chip { display: inline-block; border-radius: 99px; padding: .05em .75em; font-size: .78rem; font-weight: 600;
  white-space: nowrap; } .chip.yes { background: #d7f2e3; color: #12603b; } .chip.no { background: #fbdcdf;
  color: #8f1d2c; } .chip.unclear { background: #e6e8ec; color: #4b5563; }
small { color: var(--faint); font-size: .88em; } code { font: .92em ui-monospace, monospace; } a { color: inherit; }
.sum { display: flex; gap: .7rem; margin: 1.4rem 0; flex-wrap: wrap; }
.sum div { flex: 1; background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: .8rem 1rem; }
.sum b { display: block; font-size: 1.9rem; line-height: 1.2; }
@media (max-width: 60rem) { .page { grid-template-columns: minmax(0, 1fr); gap: 1rem; } nav { position: static; }
  .claims td:nth-child(1) { width: auto; } }
@media print { nav, details { display: none; } .page { display: block; } }
"""


def report(folder: Path, names: Sequence[str]) -> str:
    """The page from the results in ``folder``, in the order of ``names``; those not measured yet are left out."""
    found = {name: json.loads((folder / f"{name}.json").read_text()) for name in names if _there(folder, name)}
    if not found:
        raise FlashUError(f"{folder} holds no results yet: run `flashu lab all -o {folder}` first")
    holds = [claim["holds"] for result in found.values() for claim in result["claims"]]
    counts = {kind: holds.count(kind) for kind in MARKS}
    tiles = "".join(f'<div><b>{n}</b><span class="chip {k}">{MARKS[k]}</span></div>' for k, n in counts.items())
    body = [
        "<h1>The lab</h1>",
        "<p>What the FlashU paper claims, what was measured here, and whether it holds here.</p>",
        f"<p><small>{escape(_conditions(next(iter(found.values()))['about']))}</small></p>",
        f'<div class="sum">{tiles}</div>',
        "<p>“Holds” is about this model and machine. Brackets are 95&nbsp;% intervals of scores and their paired "
        "differences, and quartiles of speed-ups, which are taken turn by turn in one run. A difference is called one "
        "only where the bootstrap interval and the exact McNemar test agree; otherwise it is “unclear”, however large "
        "it looks. “Vanilla” is the exact runtime; the original program does the same with more work, so ratios over "
        "both are told.</p>",
        *(section(name, result, folder / f"{name}.png") for name, result in found.items()),
    ]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>flashu lab</title><style>{STYLE}</style><div class=page>{contents(found)}"
        f"<main>{''.join(body)}</main></div></html>\n"
    )


def _there(folder: Path, name: str) -> bool:
    return all((folder / f"{name}.{kind}").exists() for kind in ("json", "png"))


def contents(found: dict[str, dict[str, Any]]) -> str:
    """The list of items, each with a dot per claim."""

    def line(name: str, result: dict[str, Any]) -> str:
        dots = "".join(f'<i class="{c["holds"]}" title="{escape(c["claimed"])}"></i>' for c in result["claims"])
        return f'<li><a href="#{name}">{escape(name)}<span>{dots}</span></a></li>'

    return f"<nav><ol>{''.join(line(name, result) for name, result in found.items())}</ol></nav>"


def section(name: str, result: dict[str, Any], picture: Path) -> str:
    about = result["about"]
    image = base64.b64encode(picture.read_bytes()).decode()
    title = escape(result["title"])
    counted = ", ".join(f"{about[k]} {k}" if k != "n" else f"n = {about[k]}" for k in COUNTED if k in about)
    rows = "".join(
        f"<tr><td>{escape(c['claimed'])}</td><td>{escape(c['measured'])}</td>"
        f'<td><span class="chip {c["holds"]}">{MARKS[c["holds"]]}</span></td></tr>'
        for c in result["claims"]
    )
    head = f"<tr><th>claimed</th><th>measured{f' ({counted})' if counted else ''}</th><th></th></tr>"
    return (
        f'<section><h2 id="{name}">{title}</h2><table class="claims">{head}{rows}</table>'
        f'<img alt="{title}" src="data:image/png;base64,{image}">'
        f"<details><summary>All {len(result['rows'])} rows</summary>{rows_table(result['rows'])}</details>"
        f"<small><code>{escape(command(name, about))}</code><br>{escape(_conditions(about))}</small></section>"
    )


def command(name: str, about: dict[str, Any]) -> str:
    """What measures an item again."""
    model = "" if about["model"] == "scenes" else f" --model {about['model']}"
    return f"flashu lab {name} --{about['size']} --seed {about['seed']}{model}"


def rows_table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as a table; a column's interval and number of items are shown below its value."""
    every = list(dict.fromkeys(column for row in rows for column in row))
    shown = [c for c in every if not (c.endswith((" low", " high", " n")) and c.rsplit(" ", 1)[0] in every)]
    numeric = {c for c in shown if any(isinstance(row.get(c), int | float) for row in rows)}
    head = "".join(f'<th class="{"n" if c in numeric else ""}">{escape(c)}</th>' for c in shown)
    body = "".join(
        "<tr>" + "".join(f'<td class="{"n" if c in numeric else ""}">{cell(row, c)}</td>' for c in shown) + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table class="data"><tr>{head}</tr>{body}</table></div>'


def cell(row: dict[str, Any], column: str) -> str:
    value = row.get(column)
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else ""
    if not isinstance(value, int | float):
        return escape(str(value))
    low, high, n = (row.get(f"{column} {end}") for end in ("low", "high", "n"))
    below = "" if low is None or high is None else f"[{number(low)}, {number(high)}]"
    below += f" n = {n}" if n is not None else ""
    return number(value) + (f"<small>{below}</small>" if below else "")


def number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def _conditions(about: dict[str, Any]) -> str:
    machine = about["machine"]
    told = [
        f"{about['model']} ({about['model_hash'][:8]})",
        f"{about['size']} run",
        f"{about['steps']} steps, guidance {about['guidance']:g}",
        *(f"{about[k]} {k}" for k in COUNTED if k in about),
        f"{machine['device']}, {machine['threads']} threads, load {machine['load']}, torch {machine['torch']}",
        f"commit {machine['commit']}",
    ]
    return "; ".join(told)
