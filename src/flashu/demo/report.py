"""The demo's files: one self-contained HTML page from `report.html` and `report.css`, a contact sheet, the numbers."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from flashu.demo.contact_sheet import contact_sheet
from flashu.demo.items import Item
from flashu.demo.result import Result, grouped
from flashu.demo.table import cells, count, notes
from flashu.evaluation.files import atomic_write, write_json

FOLDER = Path(__file__).parent
MEANINGS = {
    "original": "the original program's computation, with all that its results do not need; the model's page in the "
    "documentation lists what that is",
    "exact": "the full model with only the wasted work removed: the same pictures up to rounding",
    "quality": "FlashU held back: less pruned, no skipped layers, every visual token kept",
    "paper": "FlashU with the paper's settings: pruned FFNs, skipped layers, kept features, fewer forwards under "
    "rising guidance, and for questions pruned visual tokens",
}
GROUPS = {"two": "two objects", "single": "single object", "attribution": "colour attribution"}
"""Longer names of categories."""


def write_all(results: Sequence[Result], folder: Path) -> None:
    """report.html, contact-sheet.png and results.json, each written whole or not at all."""
    sheet = io.BytesIO()
    contact_sheet(results).save(sheet, "PNG")
    write_json(folder / "results.json", {result.about["model"]: result.to_dict() for result in results})
    atomic_write(folder / "contact-sheet.png", sheet.getvalue())
    atomic_write(folder / "report.html", page(results))


def page(results: Sequence[Result]) -> str:
    """The whole page."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"png": png, "amount": amount, "count": count, "longer": lambda name: GROUPS.get(name, name)}
    template = environment.from_string((FOLDER / "report.html").read_text(encoding="utf-8"))
    return template.render(
        css=(FOLDER / "report.css").read_text(encoding="utf-8"),
        meanings=MEANINGS,
        models=[_model(result) for result in results],
    )


def _model(result: Result) -> dict[str, Any]:
    """What the page shows of one model."""
    by_category = {
        "pictures of": {recipe.name: right(recipe.drawn) for recipe in result.recipes},
        "questions of": {recipe.name: right(recipe.answered) for recipe in result.recipes}
        | {"commonest answer": {kind: f"{share:.0%}" for kind, share in result.about["blind_prior"].items()}},
    }
    if result.edits:
        by_category["edits of"] = {recipe.name: right(recipe.edited) for recipe in result.recipes}
    return {
        "result": result,
        "about": result.about,
        "base": result.base,
        "fast": result.fast,
        "table": {recipe.name: cells(result, recipe) for recipe in result.recipes},
        "notes": [line[0].upper() + line[1:] for line in notes(result)],
        "savings": savings(result),
        "by_category": by_category,
    }


def savings(result: Result) -> list[tuple[str, float, float]]:
    """(what, baseline, fast) of an image, from what is planned to what the clock says."""
    rows = {
        "forwards": ("image_forwards", 1),
        "forwards through the decoder": ("image_decoder_passes", 1),
        "GFLOPs": ("image_gflops_mean", 1),
        "milliseconds": ("image_seconds_median", 1e3),
    }
    base, fast = result.base.numbers(), result.fast.numbers()
    return [(what, base[name] * unit, fast[name] * unit) for what, (name, unit) in rows.items()]


def right(items: Sequence[Item]) -> dict[str, str]:
    """How many items of each group are right."""
    groups = grouped(items, lambda item: item.group)
    return {name: f"{sum(item.right for item in of)}/{len(of)}" for name, of in groups.items()}


def amount(value: float) -> str:
    """Three digits, and never an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def png(image: Image.Image, side: int) -> str:
    """The image as an inline PNG, small ones enlarged so that a browser need not blur them."""
    if max(image.size) < side:
        factor = side // max(image.size) or 1
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.quantize(128).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
