"""Show-o2 as its users hold it: loaded, drawing and answering by itself."""

from __future__ import annotations

import os
from typing import TypeVar

import torch
from torch import nn

from flashu.interfaces.model import PretrainedModel
from flashu.models.family import Checkpoint
from flashu.models.fit import Holding
from flashu.models.pretrained import check_placement
from flashu.models.registry import check_room, resolve
from flashu.models.showo2.dropin.adopt import Block, Unpatchify, adopted
from flashu.models.showo2.load import load_model, load_processor
from flashu.models.showo2.model import ShowO2 as Architecture
from flashu.models.showo2.processor import Processor

Model = TypeVar("Model", bound="ShowO2")


class ShowO2(PretrainedModel, Architecture):
    """A Show-o2 model with its tokenizer and autoencoder (``processor``), and its calibration if it came with one.

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
        exact_rope: bool | None = None,
    ) -> Model:
        """Load a folder, a hub id or "scenes"; ``dtype`` None = as stored, ``device`` None = CPU.

        Reads the official layout (`pytorch_model.bin`, sharded, or safetensors, with the constructor's `config.json`)
        and ours. ``autoencoder``: a Wan2.1 folder or `.pth`; "auto" = the checkpoint's own, else the hub's; None =
        latents only. ``offload``: the weights stay in main memory and visit ``device`` a projection or FFN at a time.
        ``quantize``: see `quantize`. ``pack``: for bf16 on a CPU, see `pack`.
        ``exact_rope``: rotary frequencies stay fp32 at a lower ``dtype``, where the original rounds them; None = as the
        checkpoint says (official ones: rounded). Raises `CheckpointError`, leaving nothing half-loaded.
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
            exact_rope=exact_rope,
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
        exact_rope: bool | None = None,
    ) -> Model:
        check_placement(offload, quantize, pack)
        # The processor first, so that small faults show before big reads.
        processor = load_processor(checkpoint.source, device=device, autoencoder=autoencoder)
        place = "cpu" if offload else device
        model = load_model(checkpoint.source, dtype or checkpoint.dtype, place, cls, exact_rope, quantize)
        return model.opened(checkpoint, processor, device, offload=offload, quantize=quantize, pack=pack)


def adopt(
    module: nn.Module,
    processor: Processor | None = None,
    *,
    exact_rope: bool = False,
    unpatchify: Unpatchify = "raster",
    understanding_block: Block = "script",
) -> ShowO2:
    """Our model over the weights of an instance of the original authors' class, shared and not copied.

    ``exact_rope``: fp32 rotary frequencies even if the instance was cast to less, which rounded its own.
    ``unpatchify``, ``understanding_block``: see `ShowO2Config`; the defaults are the original's. An instance that is
    cast or moved afterwards must be adopted again. Raises `CheckpointError` for another kind of model.
    """
    model = adopted(
        module, ShowO2, exact_rope=exact_rope, unpatchify=unpatchify, understanding_block=understanding_block
    )
    model.processor = processor
    return model
