"""BAGEL as its users hold it: loaded, drawing, editing and answering by itself."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, TypeVar

import torch

from flashu.interfaces.model import PretrainedModel
from flashu.models.bagel.load import Parts, load_model, load_processor
from flashu.models.bagel.model import Bagel as Architecture
from flashu.models.bagel.processor import Processor
from flashu.models.family import Checkpoint
from flashu.models.fit import Holding
from flashu.models.pictures import Picture
from flashu.models.pretrained import check_placement
from flashu.models.registry import check_room, resolve

Model = TypeVar("Model", bound="Bagel")


class Bagel(PretrainedModel, Architecture):
    """A BAGEL model with its tokenizer and autoencoder (``processor``), and its calibration if it came with one.

    `t2i_generate`, `edit` and `mmu_generate` run the exact engine, or FlashU after `flashu.apply_flashu_patch`.
    """

    processor: Processor | None = None

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
        return model.opened(checkpoint, processor, device, offload=offload, quantize=quantize, pack=pack)

    def edit(self, images: Picture | Sequence[Picture], prompts: str | Sequence[str], **settings: Any) -> list[Any]:
        """Images changed as the prompts say; settings as in `Engine.edit`."""
        return self._engine().edit(images, prompts, **settings).images
