"""Emu3 as its users hold it: loaded, drawing and answering by itself."""

from __future__ import annotations

import os
from typing import TypeVar

import torch

from flashu.interfaces.model import PretrainedModel
from flashu.models.emu3.load import load_model, load_processor
from flashu.models.emu3.model import Emu3 as Architecture
from flashu.models.emu3.processor import Processor
from flashu.models.family import Checkpoint
from flashu.models.fit import Holding
from flashu.models.pretrained import check_placement
from flashu.models.registry import check_room, resolve

Model = TypeVar("Model", bound="Emu3")


class Emu3(PretrainedModel, Architecture):
    """An Emu3 model with its tokenizers (``processor``), and its calibration if it came with one.

    `t2i_generate` and `mmu_generate` run the exact engine, or FlashU after `flashu.apply_flashu_patch`.
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
        return model.opened(checkpoint, processor, device, offload=offload, quantize=quantize, pack=pack)
