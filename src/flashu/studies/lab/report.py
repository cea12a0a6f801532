"""One self-contained HTML page of everything the lab has found: claimed, measured, holds here?"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from flashu.errors import FlashUError

VERDICTS = {"yes": "holds", "no": "does not hold", "unclear": "unclear"}
COUNTED = ("images", "questions", "samples", "n")
STYLE = """
:root { color-scheme: light dark; --faint: #808a94; --line: #80808040; }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 64rem; margin: 3rem auto; padding: 0 1.5rem; }
section { margin-top: 3rem; padding-top: 1rem; border-top: 1px solid var(--line); }
p, small, th { color: var(--faint); } a { color: inherit; }
table { border-collapse: collapse; width: 100%; font-size: .86rem; } th { text-align: left; }
th, td { padding: .45rem .9rem .45rem 0; vertical-align: top; border-bottom: 1px solid var(--line); }
.claims td:first-child { width: 36%; font-weight: 500; } .claims td:last-child { width: 8rem; text-align: right; }
img { width: 100%; box-sizing: border-box; background: #fff; border-radius: 10px; padding: .6rem; margin: 1rem 0; }
.yes, .no, .unclear { border-radius: 99px; padding: .05em .75em; font-size: .78rem; font-weight: 600;
  white-space: nowrap; color: #fff; background: #6b7280; } .yes { background: #2a7d4f; } .no { background: #b5303f; }
"""


def report(folder: Path, names: Sequence[str]) -> str:
    """The page from the results in ``folder``, in the order of ``names``; those not measured yet are left out."""
    done = [n for n in names if all((folder / f"{n}.{kind}").exists() for kind in ("json", "png"))]
    found = {name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in done}
    if not found:
        raise FlashUError(f"{folder} holds no results yet: run `flashu lab all -o {folder}` first")
    verdicts = [claim["holds"] for result in found.values() for claim in result["claims"]]
    body = [
        "<h1>The lab</h1>",
        "<p>What the FlashU paper claims, what was measured here, and whether it holds here.</p>",
        f"<p><small>{escape(_conditions(next(iter(found.values()))['about']))}</small></p>",
        f"<p>{' '.join(f'{verdicts.count(v)} {verdict(v)}' for v in VERDICTS)}</p>",
        "<p>“Holds” is about this model and machine. Brackets are 95&nbsp;% intervals of scores and their paired "
        "differences, and quartiles of speed-ups, which are taken turn by turn in one run. A difference is called one "
        "only where the bootstrap interval and the exact McNemar test agree; otherwise it is “unclear”, however large "
        "it looks. “Vanilla” is the exact runtime; the original program does the same with more work, so ratios over "
        "both are given.</p>",
        "<p>" + " · ".join(f'<a href="#{name}">{name}</a>' for name in found) + "</p>",
        *(section(name, result, folder / f"{name}.png") for name, result in found.items()),
    ]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>flashu lab</title><style>{STYLE}</style>{''.join(body)}</html>\n"
    )


def verdict(holds: str) -> str:
    return f'<span class="{holds}">{VERDICTS[holds]}</span>'


def section(name: str, result: dict[str, Any], picture: Path) -> str:
    about, title = result["about"], escape(result["title"])
    image = base64.b64encode(picture.read_bytes()).decode()
    counted = ", ".join(f"{about[k]} {k}" if k != "n" else f"n = {about[k]}" for k in COUNTED if k in about)
    rows = "".join(
        f"<tr><td>{escape(c['claimed'])}</td><td>{escape(c['measured'])}</td><td>{verdict(c['holds'])}</td></tr>"
        for c in result["claims"]
    )
    head = f"<tr><th>claimed</th><th>measured{f' ({counted})' if counted else ''}</th><th></th></tr>"
    return (
        f'<section><h2 id="{name}">{title}</h2><table class="claims">{head}{rows}</table>'
        f'<img alt="{title}" src="data:image/png;base64,{image}">'
        f"<small>{len(result['rows'])} rows in {name}.csv; <code>{escape(command(name, about))}</code><br>"
        f"{escape(_conditions(about))}</small></section>"
    )


def command(name: str, about: dict[str, Any]) -> str:
    """What measures an item again."""
    model = "" if about["model"] == "scenes" else f" --model {about['model']}"
    return f"flashu lab {name} --{about['size']} --seed {about['seed']}{model}"


def _conditions(about: dict[str, Any]) -> str:
    machine = about["machine"]
    known = [
        f"{about['model']} ({about['model_hash'][:8]})",
        f"calibration {about['calibration'][:8]}" if about.get("calibration") else "calibration gathered in the run",
        f"{about['size']} run",
        f"{about['steps']} steps, guidance {about['guidance']:g}",
        *(f"{about[k]} {k}" for k in COUNTED if k in about),
        f"{machine['device']}, {machine['threads']} threads, load {machine['load']}, torch {machine['torch']}",
        f"commit {machine['commit']}",
    ]
    return "; ".join(known)
