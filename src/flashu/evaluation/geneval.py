"""GenEval's rules (Ghosh et al. 2023, section 3), from their description, and the score of a folder of images.

An entry of the metadata asks for objects of a class, at least ``count``, maybe in a colour, maybe in a ``position``
(relation, index of an earlier request), and may forbid too many. Only the surest ``count`` detections of a class answer
for it; all of them have to have the colour and to stand in the relation to all that answer for the other request.

This is not the official scorer, so its numbers are not comparable with published ones, only with each other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from flashu.errors import FlashUError
from flashu.evaluation.statistics import Rate, wilson

SCORER = "flashu, not the official GenEval scorer"
CATEGORIES = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
MOST = 16  # detections of one class that count


@dataclass(frozen=True)
class Limits:
    """Detections must be surer than ``sure``, in counting prompts than ``sure_counting``; a centre must be further away
    than ``apart`` of both boxes' sizes to stand on a side. The defaults are the paper's, for Mask2Former."""

    sure: float = 0.3
    sure_counting: float = 0.9
    apart: float = 0.1

    def of(self, metadata: dict[str, Any]) -> float:
        return self.sure_counting if metadata.get("tag") == "counting" else self.sure


PAPER = Limits()


@dataclass(frozen=True, eq=False)
class Detection:
    """``box`` is left, top, right, bottom in pixels, ``mask`` [H, W] bool where the detector has one."""

    name: str
    score: float
    box: tuple[float, float, float, float]
    mask: np.ndarray | None = field(default=None, repr=False)


class ObjectDetector(Protocol):
    """``names``: the classes it knows, in GenEval's words."""

    @property
    def names(self) -> frozenset[str]: ...
    def __call__(self, image: Image.Image, sure: float) -> list[Detection]: ...


@dataclass(frozen=True)
class Result:
    """``networks``: names of the detector and of CLIP. ``categories``: images and right ones, with the interval that
    takes the images of one prompt for independent. ``images``: file, tag and faults."""

    networks: tuple[str, str]
    limits: Limits
    categories: dict[str, Rate]
    images: list[dict[str, Any]]

    @property
    def overall(self) -> float:
        """The mean of the categories, as in the official summary."""
        return sum(rate.value for rate in self.categories.values()) / len(self.categories)

    def to_dict(self) -> dict[str, Any]:
        each = {
            tag: {"images": r.n, "right": r.hits, "score": r.value, "low": r.low, "high": r.high}
            for tag, r in self.categories.items()
        }
        names = dict(zip(("detector", "clip"), self.networks, strict=True))
        scores = {"limits": asdict(self.limits), "overall": self.overall, "categories": each, "images": self.images}
        return {"scorer": SCORER, **names, **scores}


def score(
    folder: Path,
    detect: ObjectDetector,
    colour: Callable[[Image.Image, Detection], str],
    limits: Limits = PAPER,
    *,
    networks: tuple[str, str],
    on_image: Callable[[int, int], object] = lambda done, total: None,
) -> Result:
    """Judge every image of a folder in GenEval's layout. ``networks``: names of the detector and of CLIP."""
    prompts = _prompts(folder)
    wanted = {one["class"] for metadata, _ in prompts for one in metadata.get("include", [])}
    if unknown := sorted(wanted - detect.names):
        raise FlashUError(f"the detector knows no {', '.join(unknown[:3])}: use one trained on COCO's classes")
    images: list[dict[str, Any]] = []
    right: dict[str, list[bool]] = {tag: [] for tag in CATEGORIES}
    total = sum(len(files) for _, files in prompts)
    for metadata, files in prompts:
        for file in files:
            image = Image.open(file).convert("RGB")
            wrong = faults(metadata, detect(image, limits.of(metadata)), partial(colour, image), limits)
            images.append({"file": str(file.relative_to(folder)), "tag": metadata["tag"], "faults": wrong})
            right[metadata["tag"]].append(not wrong)
            on_image(len(images), total)
    return Result(networks, limits, {tag: wilson(sum(each), len(each)) for tag, each in right.items() if each}, images)


def _prompts(folder: Path) -> list[tuple[dict[str, Any], list[Path]]]:
    """Metadata and images of each prompt that has been drawn."""
    found = []
    for part in sorted(f for f in folder.iterdir() if f.name.isdigit()):
        try:
            metadata = json.loads((part / "metadata.jsonl").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise FlashUError(f"{part} has no metadata.jsonl that can be read: {error}") from error
        if not isinstance(metadata, dict) or metadata.get("tag") not in CATEGORIES or "include" not in metadata:
            raise FlashUError(f"{part}/metadata.jsonl says not what the image must show: draw from GenEval's own file")
        found.append((metadata, sorted((part / "samples").glob("*.png"))))
    if not any(files for _, files in found):
        raise FlashUError(f"{folder} holds no images in GenEval's layout: draw them with flashu eval geneval")
    return found


def faults(
    metadata: dict[str, Any],
    detections: Sequence[Detection],
    colour: Callable[[Detection], str],
    limits: Limits = PAPER,
) -> list[str]:
    """Why an image does not show what its metadata asks for; empty if it does."""
    seen: dict[str, list[Detection]] = {}
    for one in sorted(detections, key=lambda d: -d.score):
        if one.score > limits.of(metadata) and len(seen.setdefault(one.name, [])) < MOST:
            seen[one.name].append(one)
    wrong: list[str] = []
    answering: list[list[Detection]] = []
    for wanted in metadata.get("include", []):
        surest = seen.get(wanted["class"], [])[: wanted["count"]]
        fault = _fault(wanted, surest, answering, colour, limits)
        answering.append([] if fault else surest)
        if fault:
            wrong.append(fault)
    for unwanted in metadata.get("exclude", []):
        count = len(seen.get(unwanted["class"], []))
        if count >= unwanted["count"]:
            wrong.append(f"{count} {unwanted['class']}, fewer than {unwanted['count']} wanted")
    return wrong


def _fault(
    wanted: dict[str, Any],
    surest: list[Detection],
    answering: list[list[Detection]],
    colour: Callable[[Detection], str],
    limits: Limits,
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
        if any(relation not in relations(one, two, limits.apart) for one in surest for two in answering[other]):
            return f"{name} is not {relation} it"
    return None


def relations(a: Detection, b: Detection, apart: float = PAPER.apart) -> set[str]:
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
