"""Scoring a GenEval folder with a detector and CLIP of transformers. These are not the official scorer's networks, so
its numbers are not comparable with published ones, only with each other."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from flashu.errors import CheckpointError, FlashUError
from flashu.evaluation.geneval_rules import CATEGORIES, COLOURS, PAPER, Found, Limits, faults
from flashu.evaluation.statistics import wilson

SCORER = "flashu, not the official GenEval scorer"
DETECTOR = "facebook/mask2former-swin-small-coco-instance"
CLIP = "openai/clip-vit-large-patch14"
GREY = (153, 153, 153)  # what surrounds an object when its colour is asked for
# GenEval's names on the left; COCO's, and those of an older list of the same classes.
ALIASES: dict[str, tuple[str, ...]] = {
    "airplane": ("aeroplane",),
    "computer keyboard": ("keyboard",),
    "computer mouse": ("mouse",),
    "couch": ("sofa",),
    "dining table": ("diningtable",),
    "motorcycle": ("motorbike",),
    "potted plant": ("pottedplant",),
    "tv": ("tvmonitor",),
    "tv remote": ("remote",),
}


class Detects(Protocol):
    """``names``: the classes it knows, in GenEval's words."""

    @property
    def names(self) -> frozenset[str]: ...
    def __call__(self, image: Image.Image, sure: float) -> list[Found]: ...


Colours = Callable[[Image.Image, Found], str]


@dataclass(frozen=True)
class Category:
    """Images of a category: how many, how many right, with the 95 % Wilson interval (which takes the images of one
    prompt for independent)."""

    images: int
    right: int
    score: float
    low: float
    high: float


@dataclass(frozen=True)
class Score:
    """``overall``: the mean of the categories, as the official summary has it. ``images``: file, tag and faults."""

    scorer: str
    detector: str
    clip: str
    limits: Limits
    overall: float
    categories: dict[str, Category]
    images: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def score(
    folder: Path,
    detect: Detects,
    colour: Colours,
    limits: Limits = PAPER,
    *,
    names: tuple[str, str] = (DETECTOR, CLIP),
    on_image: Callable[[int, int], None] | None = None,
) -> Score:
    """Judge every image of a folder in GenEval's layout. ``names``: of the detector and of CLIP, for the record."""
    prompts = _prompts(folder)
    asked = {wanted["class"] for about, _ in prompts for wanted in about.get("include", [])}
    if unknown := sorted(asked - detect.names):
        raise FlashUError(f"the detector knows no {', '.join(unknown[:3])}: take one trained on COCO's classes")
    images: list[dict[str, Any]] = []
    total = sum(len(files) for _, files in prompts)
    for about, files in prompts:
        for file in files:
            image = Image.open(file).convert("RGB")
            found = detect(image, limits.of(about))
            wrong = faults(about, found, partial(colour, image), limits)
            images.append({"file": str(file.relative_to(folder)), "tag": about["tag"], "faults": wrong})
            if on_image is not None:
                on_image(len(images), total)
    marks = {tag: [not i["faults"] for i in images if i["tag"] == tag] for tag in CATEGORIES}
    categories = {tag: _category(right) for tag, right in marks.items() if right}
    overall = sum(category.score for category in categories.values()) / len(categories)
    return Score(SCORER, *names, limits, overall, categories, images)


def _category(right: Sequence[bool]) -> Category:
    rate = wilson(sum(right), len(right))
    return Category(rate.n, rate.hits, rate.value, rate.low, rate.high)


def _prompts(folder: Path) -> list[tuple[dict[str, Any], list[Path]]]:
    """Metadata and images of each prompt that has been drawn."""
    found = []
    for place in sorted(f for f in folder.iterdir() if f.name.isdigit()):
        try:
            about = json.loads((place / "metadata.jsonl").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise FlashUError(f"{place} has no metadata.jsonl that can be read: {error}") from error
        if not isinstance(about, dict) or about.get("tag") not in CATEGORIES or "include" not in about:
            raise FlashUError(f"{place}/metadata.jsonl says not what the image must show: draw from GenEval's own file")
        found.append((about, sorted((place / "samples").glob("*.png"))))
    if not any(files for _, files in found):
        raise FlashUError(f"{folder} holds no images in GenEval's layout: draw them with flashu eval geneval")
    return found


class Detector:
    """An instance-segmentation model of transformers (Mask2Former and its kin) with COCO's classes."""

    def __init__(self, source: str = DETECTOR, device: torch.device | str = "cpu") -> None:
        transformers = _transformers()
        self.processor = _loaded(transformers.AutoImageProcessor, source)
        self.model = _loaded(transformers.AutoModelForUniversalSegmentation, source).to(device).eval()
        known = {str(label).lower(): number for number, label in self.model.config.id2label.items()}
        self._name = {number: label for label, number in known.items()}
        for name, others in ALIASES.items():
            for other in others:
                if other in known:
                    self._name[known[other]] = name

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._name.values())

    @torch.inference_mode()
    def __call__(self, image: Image.Image, sure: float) -> list[Found]:
        given = self.processor(images=image, return_tensors="pt").to(self.model.device)
        [seen] = self.processor.post_process_instance_segmentation(
            self.model(**given), threshold=sure, target_sizes=[image.size[::-1]], return_binary_maps=True
        )
        if not seen["segments_info"]:
            return []
        masks = seen["segmentation"].bool().cpu().numpy()
        masks = masks if masks.ndim == 3 else masks[None]
        return [
            Found(self._name[one["label_id"]], one["score"], _box(mask), mask)
            for one, mask in zip(seen["segments_info"], masks, strict=True)
        ]


class Colourist:
    """CLIP, asked which of GenEval's ten colours an object has, with its surroundings in grey."""

    def __init__(self, source: str = CLIP, device: torch.device | str = "cpu") -> None:
        transformers = _transformers()
        self.processor = _loaded(transformers.AutoProcessor, source)
        self.model = _loaded(transformers.CLIPModel, source).to(device).eval()
        self._known: dict[str, torch.Tensor] = {}

    @torch.inference_mode()
    def __call__(self, image: Image.Image, found: Found) -> str:
        if found.mask is not None:
            image = Image.composite(image, Image.new("RGB", image.size, GREY), Image.fromarray(found.mask))
        crop = image.crop(tuple(round(edge) for edge in found.box))  # type: ignore[arg-type]
        given = self.processor(images=crop, return_tensors="pt").to(self.model.device)
        seen = self.model.visual_projection(self.model.vision_model(**given).pooler_output)
        return COLOURS[int((seen @ self._words(found.name).T).argmax())]

    def _words(self, name: str) -> torch.Tensor:
        """One direction [10, D] per colour: the mean over three phrasings, each of length one."""
        if name not in self._known:
            forms = (f"a photo of a {{}} {name}", f"a photo of a {{}}-colored {name}", "a photo of a {} object")
            words = [form.format(colour) for colour in COLOURS for form in forms]
            given = self.processor(text=words, return_tensors="pt", padding=True).to(self.model.device)
            said = self.model.text_projection(self.model.text_model(**given).pooler_output)
            mean = torch.nn.functional.normalize(said, dim=-1).unflatten(0, (len(COLOURS), len(forms))).mean(1)
            self._known[name] = torch.nn.functional.normalize(mean, dim=-1)
        return self._known[name]


def _box(mask: np.ndarray) -> tuple[float, float, float, float]:
    """The smallest box around a mask."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def _transformers() -> Any:
    try:
        import scipy  # noqa: F401  (Mask2Former's class asks for it)
        import transformers
    except ImportError as error:
        raise FlashUError(f"scoring needs transformers and scipy ({error}): pip install 'flashu[score]'") from error
    return transformers


def _loaded(kind: Any, source: str) -> Any:
    try:
        return kind.from_pretrained(source)
    except (OSError, ValueError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CheckpointError(
            f"{source} cannot be loaded ({reason}). Without a connection, run `hf download {source} --local-dir "
            "FOLDER` on a machine that has one and give FOLDER's path."
        ) from error
