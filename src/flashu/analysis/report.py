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
STYLE = """
:root { --ink: #1b1f24; --faint: #66707a; --line: #e3e6ea; --paper: #fcfcfa; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --faint: #9aa4ae; --line: #353b42; --paper: #16191d; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 3rem 1.5rem 6rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 2rem; letter-spacing: -.02em; margin: 0 0 .3rem; } h2 { font-size: 1.3rem; margin: 3.5rem 0 .6rem; }
p, summary { color: var(--faint); } table { border-collapse: collapse; width: 100%; font-size: .84rem; }
th { text-align: left; font-weight: 600; color: var(--faint); border-bottom: 2px solid var(--line); }
th, td { padding: .35rem .6rem .35rem 0; vertical-align: top; } td { border-bottom: 1px solid var(--line); }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.wide { overflow-x: auto; } img { width: 100%; background: #fff; border-radius: 8px; margin: 1rem 0; }
.yes, .no, .unclear { display: inline-block; border-radius: 99px; padding: 0 .7em; font-size: .78rem;
  font-weight: 600; white-space: nowrap; }
.yes { background: #d7f2e3; color: #12603b; } .no { background: #fbdcdf; color: #8f1d2c; }
.unclear { background: #ececf0; color: #4b5563; } small { color: var(--faint); } nav a { margin-right: 1rem; }
a { color: inherit; } .sum { display: flex; gap: .6rem; margin: 1.2rem 0; flex-wrap: wrap; }
"""


def report(folder: Path, names: Sequence[str]) -> str:
    """The page from the results in ``folder``, in the order of ``names``; those not measured yet are left out."""
    found = {name: json.loads((folder / f"{name}.json").read_text()) for name in names if _there(folder, name)}
    if not found:
        raise FlashUError(f"{folder} holds no results yet: run `flashu lab all -o {folder}` first")
    every = [(name, claim) for name, result in found.items() for claim in result["claims"]]
    counts = {kind: sum(c["holds"] == kind for _, c in every) for kind in MARKS}
    badges = "".join(f'<span class="{k}">{n} {MARKS[k]}</span>' for k, n in counts.items() if n)
    links = "".join(f'<a href="#{name}">{escape(name)}</a>' for name in found)
    body = [
        "<h1>The lab</h1>",
        f"<p>{escape(_conditions(next(iter(found.values()))['about']))}</p>",
        f'<div class="sum">{badges}</div><nav>{links}</nav>',
        "<h2>Claimed, measured, holds here?</h2>",
        verdicts(every),
        "<p>“Holds” is about this model and machine. A difference is called one only where the paired bootstrap "
        "interval and the exact McNemar test agree; otherwise it is “unclear”, however large it looks.</p>",
    ]
    for name, result in found.items():
        body += section(name, result, folder / f"{name}.png")
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>flashu lab</title><style>{STYLE}</style>{''.join(body)}</html>\n"
    )


def _there(folder: Path, name: str) -> bool:
    return all((folder / f"{name}.{kind}").exists() for kind in ("json", "png"))


def verdicts(claims: Sequence[tuple[str, dict[str, str]]]) -> str:
    rows = "".join(
        f'<tr><td><a href="#{name}">{escape(name)}</a></td><td>{escape(c["claimed"])}</td>'
        f'<td>{escape(c["measured"])}</td><td><span class="{c["holds"]}">{MARKS[c["holds"]]}</span></td></tr>'
        for name, c in claims
    )
    head = "<tr><th></th><th>claimed</th><th>measured</th><th>here</th></tr>"
    return f'<div class="wide"><table>{head}{rows}</table></div>'


def section(name: str, result: dict[str, Any], picture: Path) -> list[str]:
    command = f"flashu lab {name} --{result['about']['size']}"
    image = base64.b64encode(picture.read_bytes()).decode()
    return [
        f'<h2 id="{name}">{escape(result["title"])}</h2>',
        f'<img alt="{escape(result["title"])}" src="data:image/png;base64,{image}">',
        verdicts([(name, claim) for claim in result["claims"]]),
        f"<details><summary>{len(result['rows'])} rows</summary>{rows_table(result['rows'])}</details>",
        f"<small>{escape(_conditions(result['about']))}; <code>{command}</code></small>",
    ]


def rows_table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as a table; a column's interval is shown beside its value."""
    every = list(dict.fromkeys(column for row in rows for column in row))
    shown = [c for c in every if not (c.endswith((" low", " high")) and c.rsplit(" ", 1)[0] in every)]
    numeric = {c for c in shown if any(isinstance(row.get(c), int | float) for row in rows)}
    head = "".join(f'<th class="{"n" if c in numeric else ""}">{escape(c)}</th>' for c in shown)
    body = "".join(
        "<tr>" + "".join(f'<td class="{"n" if c in numeric else ""}">{cell(row, c)}</td>' for c in shown) + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def cell(row: dict[str, Any], column: str) -> str:
    value = row.get(column)
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else ""
    if not isinstance(value, int | float):
        return escape(str(value))
    low, high = row.get(f"{column} low"), row.get(f"{column} high")
    beside = "" if low is None or high is None else f" <small>[{number(low)}, {number(high)}]</small>"
    return number(value) + beside


def number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def _conditions(about: dict[str, Any]) -> str:
    machine = about["machine"]
    told = [
        f"{about['model']} ({about['model_hash'][:8]})",
        f"{about['size']} run",
        f"{about['steps']} steps, guidance {about['guidance']:g}",
        *(f"{about[k]} {k}" for k in ("images", "questions", "samples") if k in about),
        f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}",
        f"commit {machine['commit']}",
    ]
    return "; ".join(told)
