"""Janus-Pro as its users hold it: loaded, drawing and answering by itself."""

from __future__ import annotations

from typing import TypeVar

import torch

from flashu.interfaces.model import PretrainedModel
from flashu.models.family import Checkpoint
from flashu.models.janus.load import load_model, load_processor
from flashu.models.janus.model import Janus as Architecture
from flashu.models.pretrained import check_placement

Model = TypeVar("Model", bound="Janus")


class Janus(PretrainedModel, Architecture):
    """A Janus-Pro model with its ``processor``. `flashu.load` opens it; options as of `_load`."""

    @classmethod
    def _load(
        cls: type[Model],
        checkpoint: Checkpoint,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        autoencoder: str | None = "auto",
        offload: bool = False,
        quantize: str | None = None,
        pack: bool = False,
    ) -> Model:
        check_placement(offload, quantize, pack)
        processor = load_processor(checkpoint.source, device, autoencoder)
        model = load_model(checkpoint.source, dtype or checkpoint.dtype, "cpu" if offload else device, cls, quantize)
        return model.opened(checkpoint, processor, device, offload=offload, quantize=quantize, pack=pack)
