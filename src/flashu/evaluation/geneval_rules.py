"""GenEval's rules over what a detector found in an image (Ghosh et al. 2023, section 3), from their description.

An entry of the metadata asks for objects of a class, at least ``count``, maybe in a colour, maybe in a ``position``
(relation, index of an earlier request), and may forbid too many. Only the surest ``count`` detections of a class answer
for it; all of them have to have the colour and to stand in the relation to all that answer for the other request.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

CATEGORIES = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
MOST = 16  # detections of one class that count


@dataclass(frozen=True)
class Limits:
    """Detections must be surer than ``sure``, in counting prompts than ``sure_counting``; a centre must be further away
    than ``apart`` of both boxes' sizes to stand on a side. The defaults are the paper's, for Mask2Former."""

    sure: float = 0.3
    sure_counting: float = 0.9
    apart: float = 0.1

    def of(self, about: dict[str, Any]) -> float:
        return self.sure_counting if about.get("tag") == "counting" else self.sure


PAPER = Limits()


@dataclass(frozen=True, eq=False)
class Found:
    """A detection: ``box`` is left, top, right, bottom in pixels, ``mask`` [H, W] bool where the detector has one."""

    name: str
    score: float
    box: tuple[float, float, float, float]
    mask: np.ndarray | None = field(default=None, repr=False)


Colour = Callable[[Found], str]


def faults(about: dict[str, Any], found: Sequence[Found], colour: Colour, limits: Limits = PAPER) -> list[str]:
    """Why an image does not show what its metadata asks for; empty if it does. ``colour`` names a detection's."""
    seen: dict[str, list[Found]] = {}
    for one in sorted(found, key=lambda f: -f.score):
        if one.score > limits.of(about) and len(seen.setdefault(one.name, [])) < MOST:
            seen[one.name].append(one)
    wrong: list[str] = []
    answering: list[list[Found]] = []
    for wanted in about.get("include", []):
        surest = seen.get(wanted["class"], [])[: wanted["count"]]
        fault = _lacking(wanted, surest, answering, colour, limits)
        answering.append([] if fault else surest)
        if fault:
            wrong.append(fault)
    for unwanted in about.get("exclude", []):
        count = len(seen.get(unwanted["class"], []))
        if count >= unwanted["count"]:
            wrong.append(f"{count} {unwanted['class']}, fewer than {unwanted['count']} wanted")
    return wrong


def _lacking(
    wanted: dict[str, Any], surest: list[Found], answering: list[list[Found]], colour: Colour, limits: Limits
) -> str | None:
    name, count = wanted["class"], wanted["count"]
    if len(surest) < count:
        return f"{len(surest)} {name}, {count} wanted"
    if "color" in wanted:
        colours = [colour(one) for one in surest]
        if any(c != wanted["color"] for c in colours):
            return f"{name} is {' and '.join(colours)}, {wanted['color']} wanted"
    if "position" in wanted:
        relation, other = wanted["position"]
        if not answering[other]:
            return f"nothing for {name} to be {relation}"
        sides = [relations(one, mark, limits.apart) for one in surest for mark in answering[other]]
        if any(relation not in side for side in sides):
            return f"{name} is not {relation} it"
    return None


def relations(a: Found, b: Found, apart: float = PAPER.apart) -> set[str]:
    """On which sides of b a stands. On each axis the distance of the centres, less ``apart`` times both sizes, must be
    more than half of the whole distance: up to 60 degrees off the axis, so that two sides may hold at once."""
    (dx, wide), (dy, high) = (_axis(a.box, b.box, axis) for axis in (0, 1))
    whole = float(np.hypot(dx, dy))
    across, down = (max(abs(d) - apart * size, 0.0) * 2 > whole for d, size in ((dx, wide), (dy, high)))
    sides = set()
    if across:
        sides.add("left of" if dx < 0 else "right of")
    if down:
        sides.add("above" if dy < 0 else "below")
    return sides


def _axis(a: Sequence[float], b: Sequence[float], axis: int) -> tuple[float, float]:
    """Signed distance of the centres of two boxes along an axis, and the sum of their sizes there."""
    return (a[axis] + a[axis + 2] - b[axis] - b[axis + 2]) / 2, a[axis + 2] - a[axis] + b[axis + 2] - b[axis]
