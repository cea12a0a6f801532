"""The contact sheet: every prompt drawn by the baseline and by FlashU, side by side, each right or wrong."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from flashu.demo.items import Item
from flashu.demo.result import Pair, Result
from flashu.demo.table import milliseconds

TILE, STRIP, GAP, TEXT, COLUMNS = 112, 17, 10, 44, 6
MARGIN = 28
HEAD = 74
PAPER, INK, FAINT = "#ffffff", "#1c1f26", "#6b7280"
RIGHT, WRONG = "#1a7f4b", "#c0352b"
SIZES = {"title": 22, "text": 13, "small": 12}


def contact_sheet(results: Sequence[Result]) -> Image.Image:
    """A part for each model: pairs in reading order, by category; then edits, each after the picture it is of."""
    parts = [part for result in results for part in _parts(result)]
    width = max(part.width for part in parts)
    sheet = Image.new("RGB", (width, sum(part.height for part in parts)), PAPER)
    y = 0
    for part in parts:
        sheet.paste(part, (0, y))
        y += part.height
    return sheet.quantize(256, dither=Image.Dither.NONE)  # flat colours: a quarter of the file


def _parts(result: Result) -> list[Image.Image]:
    base, fast = result.base, result.fast
    times = {recipe: milliseconds(recipe.numbers()["image_seconds_median"]) for recipe in (base, fast)}
    line = (
        f"{base.name}: {base.score.hits} of {base.score.n} right, {times[base]} an image     "
        f"{fast.name}: {fast.score.hits} of {fast.score.n} right, {times[fast]}     "
        f"{result.speedup(fast, 'image'):.2f} times as fast"
    )
    title = f"{result.about['model']}: {base.name} (left) and {fast.name} (right), same prompts, same seeds"
    drawn = [pair for pairs in result.drawn_pairs().values() for pair in pairs]
    parts = [_grid(title, line, drawn)]
    if result.edits:
        line = (
            f"{base.name}: {base.edit_score.hits} of {base.edit_score.n} right     "
            f"{fast.name}: {fast.edit_score.hits} of {fast.edit_score.n} right     "
            f"{result.speedup(fast, 'edit'):.2f} times as fast"
        )
        edited = [pair for pairs in result.edited_pairs().values() for pair in pairs]
        parts.append(_grid(f"{result.about['model']}, edits: before, {base.name}, {fast.name}", line, edited))
    return parts


def _grid(title: str, line: str, pairs: Sequence[Pair]) -> Image.Image:
    tiles = 3 if pairs[0][0].source is not None else 2
    columns = COLUMNS * 2 // tiles
    group_width, group_height = tiles * TILE + (tiles - 1) * GAP // 2, TILE + STRIP + TEXT
    rows = -(-len(pairs) // columns)
    width = 2 * MARGIN + columns * group_width + (columns - 1) * 3 * GAP
    sheet = Image.new("RGB", (width, 2 * MARGIN + HEAD + rows * (group_height + GAP)), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, MARGIN), title, INK, font(SIZES["title"]))
    pen.text((MARGIN, MARGIN + 34), line, FAINT, font(SIZES["text"]))
    for n, (left, right) in enumerate(pairs):
        row, column = divmod(n, columns)
        x = start = MARGIN + column * (group_width + 3 * GAP)
        y = MARGIN + HEAD + row * (group_height + GAP)
        if left.source is not None:
            sheet.paste(left.source.resize((TILE, TILE), Image.Resampling.LANCZOS), (x, y))
            x += TILE + GAP // 2
        tile(sheet, pen, left, x, y)
        tile(sheet, pen, right, x + TILE + GAP // 2, y)
        for k, words in enumerate(wrapped(pen, left.text, group_width)):
            pen.text((start, y + TILE + STRIP + 5 + 15 * k), words, INK, font(SIZES["small"]))
    return sheet


def tile(sheet: Image.Image, pen: ImageDraw.ImageDraw, drawn: Item, x: int, y: int) -> None:
    """One picture in a green or red frame, over a tick or a cross that needs no colour to be read."""
    colour = RIGHT if drawn.right else WRONG
    pen.rectangle((x, y, x + TILE - 1, y + TILE + STRIP - 1), fill=colour)
    inner = TILE - 6
    sheet.paste(drawn.image.resize((inner, inner), Image.Resampling.LANCZOS), (x + 3, y + 3))
    left, top = x + TILE // 2 - 7, y + TILE - 1
    if drawn.right:
        pen.line([(left, top + 8), (left + 5, top + 13), (left + 14, top + 3)], fill=PAPER, width=2)
    else:
        pen.line([(left + 2, top + 3), (left + 12, top + 13)], fill=PAPER, width=2)
        pen.line([(left + 12, top + 3), (left + 2, top + 13)], fill=PAPER, width=2)


def wrapped(pen: ImageDraw.ImageDraw, text: str, width: int) -> list[str]:
    """The text in at most two lines of ``width`` pixels."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if pen.textlength(longer, font(SIZES["small"])) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines[:2]


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
