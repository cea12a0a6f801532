"""The demo's report: one self-contained HTML page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from flashu.demo.result import Answered, Drawn, Result, by_group
from flashu.demo.table import HEADINGS, cells, count, notes, paired_lines

CSS = Path(__file__).with_name("report.css")
MEANINGS = {
    "original": "the original program: whole rows padded to full length in every forward, the picture embedded twice, "
    "words computed that nobody reads, and for answers the whole row again for every word",
    "exact": "the full model with only the wasted work removed: the same pictures up to rounding",
    "quality": "FlashU held back: less pruned, no skipped layers, every visual token kept",
    "paper": "FlashU with the paper's settings: pruned FFNs, skipped layers, a cached flow head, fewer forwards under "
    "rising guidance, and for questions pruned visual tokens",
}
NAMES = {"two": "two objects", "single": "single object", "attribution": "colour attribution"}


def page(result: Result) -> str:
    """The whole page."""
    parts = [
        opening(result),
        numbers(result),
        decomposition(result),
        by_category(result),
        pictures(result),
        questions(result),
        closing(result),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>FlashU, side by side</title>'
        f"<style>{CSS.read_text(encoding='utf-8')}</style></head>\n<body><main>\n"
        + "\n".join(parts)
        + "\n</main></body></html>\n"
    )


def opening(result: Result) -> str:
    fast, base = result.fast, result.base
    answers = result.answer_speedup(fast)
    said = "" if answers is None else f", and answers <b>{answers:.2f} times</b> as fast"
    return (
        "<h1>The same model, with and without FlashU</h1>"
        f'<p class="lede">From the same seeds, <b>{escape(fast.name)}</b> draws '
        f"<b>{result.image_speedup(fast):.2f} times</b> as fast as the original program{said}. It gets "
        f"<b>{fast.score.hits} of {fast.score.n}</b> pictures right, the original program {base.score.hits}"
        f"{answered_right(result)}.</p>"
    )


def answered_right(result: Result) -> str:
    fast, base = result.fast.accuracy, result.base.accuracy
    if fast is None or base is None:
        return ""
    return f"; of {fast.n} questions <b>{fast.hits}</b> against {base.hits}"


def numbers(result: Result) -> str:
    about = result.about
    head = "".join(f"<th>{escape(name)}</th>" for name in HEADINGS)
    rows = "".join(
        f'<tr class="{"fast" if side is result.fast else ""}">'
        + "".join(f"<td>{interval(cell)}</td>" for cell in (side.name, *cells(result, side)))
        + "</tr>"
        for side in result.sides
    )
    meanings = "".join(
        f"<dt>{escape(side.name)}</dt><dd>{escape(MEANINGS.get(side.name, 'a recipe of your own'))}</dd>"
        for side in result.sides
    )
    changed = "".join(
        f"<p>{escape(line[0].upper() + line[1:])}.</p>" for line in [*paired_lines(result), *notes(result)]
    )
    return (
        "<h2>The numbers</h2>"
        f'<div class="wide"><table><thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
        f"<dl>{meanings}</dl>"
        f'<p class="faint">{about["images"]} pictures and {about["questions"]} questions per recipe, none seen in '
        "training, one at a time and in turns; median times after a warm-up, from prompt to picture and from picture "
        "to answer. Scores with 95% Wilson intervals; an exact detector judges the pictures. Speed-ups are over "
        f"{escape(result.baseline)}. </p>{changed}"
    )


def interval(cell: str) -> str:
    """The brackets of an interval in small print."""
    value, bracket, rest = escape(cell).partition(" [")
    return f"{value} <small>[{rest}</small>" if bracket else value


def amount(value: float) -> str:
    """Three digits, and never an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def decomposition(result: Result) -> str:
    """How much of the speed-up each kind of saving would explain."""
    steps = [(what, base, fast, base / fast) for what, base, fast in result.decomposition()]
    widest = max(ratio for *_, ratio in steps)
    rows = "".join(
        f"<tr><td>{what}</td><td>{amount(base)}</td><td>{amount(fast)}</td>"
        f'<td><div class="bar"><i style="width:{70 * ratio / widest:.0f}%"></i>{ratio:.2f}x</div></td></tr>'
        for what, base, fast, ratio in steps
    )
    return (
        '<h2>Where the time goes</h2><p class="faint">Fewer forwards, fewer of them through the decoder, fewer '
        "operations in each. What the clock shows is less than the operations saved wherever small pieces cost more "
        "to start than to compute.</p>"
        f'<div class="wide"><table class="bars"><thead><tr><th>per picture</th><th>{escape(result.baseline)}</th>'
        f"<th>{escape(result.fast.name)}</th><th></th></tr></thead><tbody>{rows}</tbody></table></div>"
    )


def by_category(result: Result) -> str:
    """Right of all per category and kind, and what answering blindly would give."""
    pictures = [(side.name, by_group(side.drawn, "category")) for side in result.sides]
    answers = [(side.name, by_group(side.answered, "kind")) for side in result.sides if side.answered]
    prior = {kind: f"{value:.0%}" for kind, value in result.about["blind_prior"].items()}
    return "<h2>By category</h2>" + group_table("pictures of", pictures) + group_table("questions of", answers, prior)


def group_table(
    title: str, groups: list[tuple[str, dict[str, tuple[int, int]]]], prior: dict[str, str] | None = None
) -> str:
    names = list(groups[0][1]) if groups else []
    head = "".join(f"<th>{escape(NAMES.get(n, n))}</th>" for n in names)
    rows = [(who, [f"{right}/{n}" for right, n in table.values()]) for who, table in groups]
    if prior:
        rows.append(("commonest answer", [prior[n] for n in names]))
    body = "".join(f"<tr><td>{escape(who)}</td>{''.join(f'<td>{c}</td>' for c in row)}</tr>" for who, row in rows)
    return f'<div class="wide"><table><thead><tr><th>{title}</th>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def pictures(result: Result) -> str:
    shown = [result.base, result.fast]
    parts = [
        '<h2>Pictures</h2><p class="faint">Under each picture: what the detector sees in it, rows numbered from the '
        "top, columns lettered from the left.</p>"
    ]
    category = ""
    for items in result.drawn_pairs():
        one = items[0]
        if one.category != category:
            parts.append(("</div>" if category else "") + f"<h3>{escape(NAMES.get(one.category, one.category))}</h3>")
            parts.append('<div class="grid">')
            category = one.category
        columns = "".join(picture(side.name, item) for side, item in zip(shown, items, strict=True))
        caption = f'{escape(one.prompt)} <span class="faint">seed {one.seed}</span>'
        parts.append(f'<figure><figcaption>{caption}</figcaption><div class="pair">{columns}</div></figure>')
    return "\n".join(parts) + "</div>"


def picture(name: str, item: Drawn) -> str:
    about = f"{name}: {item.prompt}, {'right' if item.right else 'wrong'}"
    return (
        f'<div><img src="{data_url(item.image, 192)}" alt="{escape(about)}" loading="lazy">'
        f"<b>{mark(item.right)}{escape(name)}, {item.seconds * 1e3:.0f} ms</b>{escape(item.seen)}</div>"
    )


def questions(result: Result) -> str:
    names = [result.base.name, result.fast.name]
    cards = "".join(question(names, items) for items in result.answered_pairs())
    return (
        '<h2>Questions</h2><p class="faint">The model names the cells it looks at, then answers after "so"; the last '
        f'word counts.</p><div class="grid">{cards}</div>'
    )


def question(names: Sequence[str], items: Sequence[Answered]) -> str:
    one = items[0]
    lines = "".join(
        f'<div>{mark(item.right)}<span class="name">{escape(name)}:</span> {escape(item.text) or "nothing"}</div>'
        for name, item in zip(names, items, strict=True)
    )
    return (
        f'<figure class="ask"><img src="{data_url(one.image, 96)}" alt="the picture asked about" loading="lazy">'
        f'<div><p class="q">{escape(one.question)} <span class="faint">({escape(one.truth)})</span></p>{lines}</div>'
        "</figure>"
    )


def mark(right: bool) -> str:
    kind, sign, word = ("yes", "✓", "right") if right else ("no", "✗", "wrong")
    return f'<span class="mark {kind}" role="img" aria-label="{word}">{sign}</span>'


def data_url(image: Image.Image, side: int) -> str:
    """The image as an inline PNG, small ones enlarged so that a browser need not blur them."""
    if max(image.size) < side:
        factor = side // max(image.size) or 1
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.quantize(128).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def closing(result: Result) -> str:
    about: dict[str, Any] = result.about
    ready = ", ".join(f"{escape(name)} {seconds:.1f} s" for name, seconds in about["ready_seconds"].items())
    return (
        f"<footer><p>{escape(about['hardware'])}, {count(about['cores'], 'core')}, "
        f"{count(about['threads'], 'thread')}; "
        f"{escape(about['system'])}, Python {about['python']}, torch {escape(about['torch'])}, "
        f"flashu {about['flashu']}. Weights {escape(about['model_hash'])} in {about['dtype']}, {about['steps']} steps, "
        f"guidance {about['guidance']:g}.</p><p>The run took {about['seconds']:.0f} s. The first picture and answer "
        f"of each recipe, calibration included, are not counted: {ready}.</p>"
        f"<pre><code>{escape(about['command'])}</code></pre></footer>"
    )
