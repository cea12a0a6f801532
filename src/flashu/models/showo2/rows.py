"""The rows of Show-o2 as segments: text, and the images in it."""

from __future__ import annotations

from collections.abc import Sequence

from flashu.models.showo2.config import ShowO2Config
from flashu.models.showo2.content import Part, Row, Shown, Words
from flashu.models.showo2.model import ShowO2
from flashu.runtime.layout import Segment, TokenLayout


def words(ids: Sequence[int]) -> Segment:
    """A segment of text."""
    return row_of((Words(tuple(ids)),))


def row_of(parts: Sequence[Part]) -> Segment:
    """A segment of text and whole images, each a bidirectional block with its time token."""
    row = Row(tuple(parts))
    layout = TokenLayout.causal([len(row)])
    for at, part in row.placed():
        if isinstance(part, Shown):
            layout = layout.block(at, at + len(part))
    return _segment(row, layout)


def with_image(start: int, count: int, length: int | None = None) -> TokenLayout:
    """A row of ``length`` tokens (None: up to the image's last) with an image to draw: a time token at ``start``, then
    ``count`` image tokens."""
    stop = start + count + 1
    return TokenLayout.causal([length or stop]).block(start, stop, slice(start + 1, stop))


def image_in(ids: Sequence[int], layout: TokenLayout, start: int, image: Shown) -> Segment:
    """A row with the image to draw at ``start``, over the placeholders there; padding is ordinary text, as in the
    original."""
    stop = start + len(image)
    parts = (Words(tuple(ids[:start])), image, Words(tuple(ids[stop:])))
    content = Row(tuple(part for part in parts if len(part)))
    return Segment(content, layout, layout.shape[1], None, range(start + 1, stop))


def text_alone(ids: Sequence[int], start: int, count: int) -> Segment:
    """A whole row as it is before its image comes, placeholders and all."""
    return _segment(Row((Words(tuple(ids)),)), with_image(start, count, len(ids)))


def question(model: ShowO2, ids: Sequence[Sequence[int]], images: Sequence[Shown]) -> tuple[Segment, ...]:
    """The segments of a question: what is decided by its images, and the text after them. ``ids``: before, between and
    after the images, one list more than there are images."""
    parts: list[Part] = []
    for n, between in enumerate(ids):
        parts.append(Words(tuple(between)))
        if n < len(images):
            parts.append(images[n])
    row = Row(tuple(parts))
    layout, end = TokenLayout.causal([len(row)]), 0
    for at, part in row.placed():
        if isinstance(part, Shown):
            start, stop = bidirectional(model.config, part)
            stop = min(at + stop, len(row))
            layout = layout.block(at + start, stop, slice(at + 1, at + len(part)))
            end = max(end, stop, at + len(part))
    if not images or end >= len(row):
        return (_segment(row, layout),)
    first, rest = _cut(row, end)
    # The second segment's layout counts from its own start.
    return _segment(first, layout.part(0, end)), _segment(rest, layout.part(end, len(row)).shifted(-end, -end))


def bidirectional(config: ShowO2Config, image: Shown) -> tuple[int, int]:
    """Which tokens of an image or video in a question see each other both ways, counted from its time token.

    The released scripts start one token late, so the time token is causal, and stop after as many tokens as one image
    and its time token have: with eoi for an image, after some frames for a video (in the text, for a short one).
    """
    if config.understanding_block == "training":
        return 0, len(image)
    rows, columns = (side // config.patch_size for side in image.latents.shape[-2:])
    return 1, rows * columns + 2


def _segment(row: Row, layout: TokenLayout) -> Segment:
    ids = tuple(token for part in row.parts if isinstance(part, Words) for token in part.ids)
    return Segment(row, layout, len(row), tuple(part.key for part in row.parts), ids=ids)


def _cut(row: Row, at: int) -> tuple[Row, Row]:
    """A row in two, inside of text or between parts."""
    before: list[Part] = []
    after: list[Part] = []
    for start, part in row.placed():
        if start >= at:
            after.append(part)
        elif start + len(part) <= at:
            before.append(part)
        else:
            assert isinstance(part, Words)
            before.append(Words(part.ids[: at - start]))
            after.append(Words(part.ids[at - start :]))
    return Row(tuple(before)), Row(tuple(after))
