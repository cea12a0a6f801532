"""A detector and CLIP of transformers for scoring GenEval. They are not the official scorer's networks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from flashu.errors import CheckpointError, FlashUError
from flashu.evaluation.geneval import Detection

DETECTOR = "facebook/mask2former-swin-small-coco-instance"
CLIP = "openai/clip-vit-large-patch14"
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
GREY = (153, 153, 153)  # what surrounds an object when its colour is asked for
# GenEval's names on the left; COCO's, and those of an older list of the same classes.
ALIASES = {
    "airplane": "aeroplane",
    "computer keyboard": "keyboard",
    "computer mouse": "mouse",
    "couch": "sofa",
    "dining table": "diningtable",
    "motorcycle": "motorbike",
    "potted plant": "pottedplant",
    "tv": "tvmonitor",
    "tv remote": "remote",
}


class Detector:
    """An instance-segmentation model of transformers (Mask2Former and its kin) with COCO's classes."""

    def __init__(self, source: str = DETECTOR, device: torch.device | str = "cpu") -> None:
        transformers = _transformers()
        self.processor = _loaded(transformers.AutoImageProcessor, source)
        self.model = _loaded(transformers.AutoModelForUniversalSegmentation, source).to(device).eval()
        known = {str(label).lower(): number for number, label in self.model.config.id2label.items()}
        self._name = {number: label for label, number in known.items()}
        self._name |= {known[other]: name for name, other in ALIASES.items() if other in known}

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._name.values())

    @torch.inference_mode()
    def __call__(self, image: Image.Image, sure: float) -> list[Detection]:
        given = self.processor(images=image, return_tensors="pt").to(self.model.device)
        [seen] = self.processor.post_process_instance_segmentation(
            self.model(**given), threshold=sure, target_sizes=[image.size[::-1]], return_binary_maps=True
        )
        if not seen["segments_info"]:
            return []
        masks = seen["segmentation"].bool().cpu().numpy()
        masks = masks if masks.ndim == 3 else masks[None]
        return [
            Detection(self._name[one["label_id"]], one["score"], _box(mask), mask)
            for one, mask in zip(seen["segments_info"], masks, strict=True)
        ]


class ColourClassifier:
    """CLIP, asked which of GenEval's ten colours an object has, with its surroundings in grey."""

    def __init__(self, source: str = CLIP, device: torch.device | str = "cpu") -> None:
        transformers = _transformers()
        self.processor = _loaded(transformers.AutoProcessor, source)
        self.model = _loaded(transformers.CLIPModel, source).to(device).eval()
        self._known: dict[str, torch.Tensor] = {}

    @torch.inference_mode()
    def __call__(self, image: Image.Image, detection: Detection) -> str:
        if detection.mask is not None:
            image = Image.composite(image, Image.new("RGB", image.size, GREY), Image.fromarray(detection.mask))
        crop = image.crop(tuple(round(edge) for edge in detection.box))  # type: ignore[arg-type]
        given = self.processor(images=crop, return_tensors="pt").to(self.model.device)
        seen = self.model.visual_projection(self.model.vision_model(**given).pooler_output)
        return COLOURS[int((seen @ self._words(detection.name).T).argmax())]

    def _words(self, name: str) -> torch.Tensor:
        """One direction [10, D] per colour: the mean over three phrasings, each of length one."""
        if name not in self._known:
            forms = (f"a photo of a {{}} {name}", f"a photo of a {{}}-colored {name}", "a photo of a {} object")
            words = [form.format(colour) for colour in COLOURS for form in forms]
            given = self.processor(text=words, return_tensors="pt", padding=True).to(self.model.device)
            embedded = self.model.text_projection(self.model.text_model(**given).pooler_output)
            mean = torch.nn.functional.normalize(embedded, dim=-1).unflatten(0, (len(COLOURS), len(forms))).mean(1)
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
        raise FlashUError(
            f"scoring needs transformers and scipy ({error}): pip install '.[score]' in a clone of flashu"
        ) from error
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
