"""A family's model as its users hold it: opened, saved, drawing and answering by itself."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

import torch
from PIL import Image

from flashu.errors import FlashUError
from flashu.inference.actions import Visual
from flashu.inference.arguments import Shown
from flashu.inference.calibrate.calibration import CALIBRATION, Calibration
from flashu.inference.engine import Engine
from flashu.interfaces import patch
from flashu.models.family import Checkpoint
from flashu.models.hub import checkpoint_folder
from flashu.models.pretrained import Pretrained
from flashu.models.registry import family
from flashu.models.weights import checkpoint_hash

Model = TypeVar("Model", bound="PretrainedModel")

log = logging.getLogger("flashu")


class PretrainedModel(Pretrained):
    """Mixed into a family's architecture. `t2i_generate` and `mmu_generate` run the exact engine, or FlashU after
    `flashu.apply_flashu_patch`."""

    calibration: Calibration | None = None

    def opened(
        self: Model,
        checkpoint: Checkpoint,
        processor: Any,
        device: torch.device | str | None,
        *,
        offload: bool,
        quantize: str | None,
        pack: bool,
    ) -> Model:
        """This model, whose weights have been read: with its processor and calibration, and where it is to be."""
        self.name, self.processor = checkpoint.name, processor
        file = checkpoint_folder(checkpoint.source) / CALIBRATION
        if file.exists():
            known = Calibration.load(file)
            if known.model_hash == checkpoint_hash(self):
                self.calibration = known
            else:
                log.warning(
                    "%s is of other weights and is left out: make it anew with `flashu calibrate --model %s -o %s`",
                    file, checkpoint.source, file,
                )  # fmt: skip
        self.placed(device, offload, quantize, pack)
        return self

    def save_pretrained(self, folder: str | Path) -> None:
        """Write safetensors, config and processor to ``folder``, and the calibration if it is of these weights."""
        save = family(self.spec.family).save  # type: ignore[attr-defined]
        assert save is not None
        save(self, Path(folder), self.processor)
        file = Path(folder) / CALIBRATION
        if self.calibration is not None and self.calibration.model_hash == checkpoint_hash(self):
            self.calibration.save(file)
        else:
            file.unlink(missing_ok=True)  # of weights that were there before

    def t2i_generate(self, prompts: str | Sequence[str], **settings: Any) -> list[Image.Image]:
        """Images of the prompts; settings as in `Engine.generate`."""
        return self._engine().generate(prompts, **settings).images

    @overload
    def mmu_generate(self, images: Visual, questions: str, **settings: Any) -> str: ...
    @overload
    def mmu_generate(
        self, images: Visual | Sequence[Shown], questions: Sequence[str], **settings: Any
    ) -> list[str]: ...
    def mmu_generate(self, images: Any, questions: Any, **settings: Any) -> Any:
        """Answers to questions about images, or videos where the model takes them; settings as in `Engine.answer`."""
        answers = self._engine().answer(images, questions, **settings)
        return [a.text for a in answers] if isinstance(answers, list) else answers.text

    def _engine(self) -> Engine:
        if self.processor is None:
            raise FlashUError("this model has no processor: load it with from_pretrained, or use flashu.Engine")
        model: Any = self
        return patch.engine_of(self) or Engine(model, self.processor, calibration=self.calibration)
