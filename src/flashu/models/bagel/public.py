"""BAGEL as its users hold it: loaded, drawing, editing and answering by itself."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image

from flashu.errors import FlashUError
from flashu.inference.calibrate.calibration import CALIBRATION, Calibration
from flashu.inference.engine import Engine
from flashu.interfaces import patch
from flashu.models.bagel.load import Parts, load_model, load_processor, save_model
from flashu.models.bagel.model import Bagel as Architecture
from flashu.models.bagel.processor import Processor
from flashu.models.family import Checkpoint
from flashu.models.fit import Holding
from flashu.models.hub import checkpoint_folder
from flashu.models.pictures import Picture
from flashu.models.pretrained import Pretrained, check_placement
from flashu.models.registry import check_room, resolve
from flashu.models.weights import checkpoint_hash

Model = TypeVar("Model", bound="Bagel")


class Bagel(Pretrained, Architecture):
    """A BAGEL model with its tokenizer and autoencoder (``processor``), and its calibration if it came with one.

    `t2i_generate`, `edit` and `mmu_generate` run the exact engine, or FlashU after `flashu.apply_flashu_patch`.
    """

    processor: Processor | None = None
    calibration: Calibration | None = None

    @classmethod
    def from_pretrained(
        cls: type[Model],
        source: str | os.PathLike[str],
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        autoencoder: str | os.PathLike[str] | None = "auto",
        parts: Parts = "all",
        offload: bool = False,
        quantize: str | None = None,
        pack: bool = False,
    ) -> Model:
        """Load a folder, a hub id or "scenes-bagel"; ``dtype`` None = as stored, ``device`` None = CPU.

        Reads the official layout (`ema.safetensors`, `ae.safetensors`, `llm_config.json`, `vit_config.json`,
        tokenizer.json) and ours. ``autoencoder``: a folder or file of FLUX's; None = latents only. ``parts``
        "understanding": for answering alone, 16 of 29 GB. ``offload``: the weights stay in main memory and visit
        ``device`` a projection or FFN at a time. ``quantize``: see `quantize`. ``pack``: for bf16 on a CPU, see `pack`.
        Raises `CheckpointError`, leaving nothing half-loaded.
        """
        checkpoint, place = resolve(source), torch.device(device or "cpu")
        check_room(checkpoint, Holding(place, dtype or checkpoint.dtype, quantize, offload, pack=pack, part=parts))
        return cls._load(
            checkpoint,
            dtype=dtype,
            device=device,
            autoencoder=autoencoder,
            parts=parts,
            offload=offload,
            quantize=quantize,
            pack=pack,
        )

    @classmethod
    def _load(
        cls: type[Model],
        checkpoint: Checkpoint,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        autoencoder: str | os.PathLike[str] | None = "auto",
        parts: Parts = "all",
        offload: bool = False,
        quantize: str | None = None,
        pack: bool = False,
    ) -> Model:
        check_placement(offload, quantize, pack)
        # The processor first, so that small faults show before big reads.
        vae = None if parts == "understanding" else autoencoder
        processor = load_processor(checkpoint.source, device=device, autoencoder=vae)
        place = "cpu" if offload else device
        model = load_model(checkpoint.source, dtype or checkpoint.dtype, place, cls, parts, quantize)
        model.name, model.processor = checkpoint.name, processor
        file = checkpoint_folder(checkpoint.source) / CALIBRATION
        if file.exists():
            model.calibration = Calibration.load(file, checkpoint_hash(model))
        model.placed(device, offload, quantize, pack)
        return model

    def save_pretrained(self, folder: str | Path) -> None:
        """Write safetensors, config and processor to ``folder``."""
        save_model(self, folder, self.processor)
        if self.calibration is not None:
            self.calibration.save(Path(folder) / CALIBRATION)

    def t2i_generate(self, prompts: str | Sequence[str], **settings: Any) -> list[Image.Image]:
        """Images of the prompts; settings as in `Engine.generate`."""
        return self._engine().generate(prompts, **settings).images

    def edit(self, images: Picture | Sequence[Picture], prompts: str | Sequence[str], **settings: Any) -> list[Any]:
        """Images changed as the prompts say; settings as in `Engine.edit`."""
        return self._engine().edit(images, prompts, **settings).images

    def mmu_generate(self, images: Any, questions: Any, **settings: Any) -> Any:
        """Answers to questions about images; settings as in `Engine.answer`."""
        answers = self._engine().answer(images, questions, **settings)
        return [a.text for a in answers] if isinstance(answers, list) else answers.text

    def _engine(self) -> Engine:
        if self.processor is None:
            raise FlashUError("this model has no processor: load it with from_pretrained, or use flashu.Engine")
        return patch.engine_of(self) or Engine(self, self.processor, calibration=self.calibration)
