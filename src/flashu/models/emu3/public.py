"""Emu3 as its users hold it: loaded, drawing and answering by itself."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

import torch
from PIL import Image

from flashu.errors import FlashUError
from flashu.inference.calibrate.calibration import CALIBRATION, Calibration
from flashu.inference.engine import Engine, Shown
from flashu.interfaces import patch
from flashu.models.emu3.load import load_model, load_processor, save_model
from flashu.models.emu3.model import Emu3 as Architecture
from flashu.models.emu3.processor import Processor
from flashu.models.family import Checkpoint
from flashu.models.fit import Holding
from flashu.models.hub import checkpoint_folder
from flashu.models.pictures import Picture
from flashu.models.pretrained import Pretrained, check_placement
from flashu.models.registry import check_room, resolve
from flashu.models.weights import checkpoint_hash

Model = TypeVar("Model", bound="Emu3")


class Emu3(Pretrained, Architecture):
    """An Emu3 model with its tokenizers (``processor``), and its calibration if it came with one.

    `t2i_generate` and `mmu_generate` run the exact engine, or FlashU after `flashu.apply_flashu_patch`.
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
        offload: bool = False,
        quantize: str | None = None,
        pack: bool = False,
    ) -> Model:
        """Load a folder or a hub id; ``dtype`` None = as stored (the released files: fp32), ``device`` None = CPU.

        Reads transformers' layout (the image tokenizer among the weights), the authors' (a repository of its own for
        it) and ours. ``autoencoder``: a folder or hub id of the authors' image tokenizer; "auto" = the checkpoint's
        own, else the authors'; None = codes and text only. It computes in fp32 always. ``offload``: the weights stay in
        main memory and visit ``device`` a projection or FFN at a time. ``quantize``: see `quantize`. ``pack``: for bf16
        on a CPU, see `pack`. Raises `CheckpointError`, leaving nothing half-loaded.
        """
        checkpoint, place = resolve(source), torch.device(device or "cpu")
        check_room(checkpoint, Holding(place, dtype or checkpoint.dtype, quantize, offload, pack=pack))
        return cls._load(
            checkpoint,
            dtype=dtype,
            device=device,
            autoencoder=autoencoder,
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
        offload: bool = False,
        quantize: str | None = None,
        pack: bool = False,
    ) -> Model:
        check_placement(offload, quantize, pack)
        # The processor first, so that small faults show before big reads.
        processor = load_processor(checkpoint.source, device=device, autoencoder=autoencoder)
        place = "cpu" if offload else device
        model = load_model(checkpoint.source, dtype or checkpoint.dtype, place, cls, quantize)
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

    @overload
    def mmu_generate(self, images: Picture, questions: str, **settings: Any) -> str: ...
    @overload
    def mmu_generate(
        self, images: Picture | Sequence[Shown], questions: Sequence[str], **settings: Any
    ) -> list[str]: ...
    def mmu_generate(self, images: Any, questions: Any, **settings: Any) -> Any:
        """Answers to questions about pictures; settings as in `Engine.answer`."""
        answers = self._engine().answer(images, questions, **settings)
        return [a.text for a in answers] if isinstance(answers, list) else answers.text

    def _engine(self) -> Engine:
        if self.processor is None:
            raise FlashUError("this model has no processor: load it with from_pretrained, or use flashu.Engine")
        return patch.engine_of(self) or Engine(self, self.processor, calibration=self.calibration)
