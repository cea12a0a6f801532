"""Show-o as its users hold it: loaded, drawing and answering by itself."""

from __future__ import annotations

import os
from typing import TypeVar

import torch

from flashu.interfaces.model import PretrainedModel
from flashu.models.family import Checkpoint
from flashu.models.fit import Holding
from flashu.models.pretrained import check_placement
from flashu.models.registry import check_room, resolve
from flashu.models.showo.load import Remasking, load_model, load_processor
from flashu.models.showo.model import ShowO as Architecture
from flashu.models.showo.processor import Processor

Model = TypeVar("Model", bound="ShowO")


class ShowO(PretrainedModel, Architecture):
    """A Show-o model with its tokenizers (``processor``), and its calibration if it came with one.

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
        clip: str | os.PathLike[str] | None = "auto",
        offload: bool = False,
        quantize: str | None = None,
        pack: bool = False,
        remasking: Remasking | None = None,
    ) -> Model:
        """Load a folder or a hub id; ``dtype`` None = as stored, ``device`` None = CPU.

        Reads the official layout (`pytorch_model.bin`, sharded, or safetensors, with the constructor's `config.json`)
        and ours. ``autoencoder``: a MAGVIT-v2 folder or hub id; "auto" = the checkpoint's own, else the hub's; None =
        codes and text only. ``clip``: the same for the CLIP vision tower of a w-clip-vit checkpoint. ``offload``: the
        weights stay in main memory and visit ``device`` a projection or FFN at a time. ``quantize``: see `quantize`.
        ``pack``: for bf16 on a CPU, see `pack`. ``remasking``: see `ShowOConfig`; None = as the checkpoint says
        (official ones: as the released program). Raises `CheckpointError`, leaving nothing half-loaded.
        """
        checkpoint, place = resolve(source), torch.device(device or "cpu")
        check_room(checkpoint, Holding(place, dtype or checkpoint.dtype, quantize, offload, pack=pack))
        return cls._load(
            checkpoint,
            dtype=dtype,
            device=device,
            autoencoder=autoencoder,
            clip=clip,
            offload=offload,
            quantize=quantize,
            pack=pack,
            remasking=remasking,
        )

    @classmethod
    def _load(
        cls: type[Model],
        checkpoint: Checkpoint,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        autoencoder: str | os.PathLike[str] | None = "auto",
        clip: str | os.PathLike[str] | None = "auto",
        offload: bool = False,
        quantize: str | None = None,
        pack: bool = False,
        remasking: Remasking | None = None,
    ) -> Model:
        check_placement(offload, quantize, pack)
        # The processor first, so that small faults show before big reads.
        processor = load_processor(checkpoint.source, device=device, autoencoder=autoencoder, clip=clip)
        place = "cpu" if offload else device
        model = load_model(checkpoint.source, dtype or checkpoint.dtype, place, cls, remasking, quantize)
        return model.opened(checkpoint, processor, device, offload=offload, quantize=quantize, pack=pack)
