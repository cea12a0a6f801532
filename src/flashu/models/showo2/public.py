"""Show-o2 as its users hold it: loaded, drawing and answering by itself."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

import torch
from PIL import Image
from torch import nn

from flashu.errors import FlashUError
from flashu.inference.actions import Visual
from flashu.inference.calibrate.calibration import CALIBRATION, Calibration
from flashu.inference.engine import Engine, Shown
from flashu.interfaces import patch
from flashu.models.family import Checkpoint
from flashu.models.fit import Holding
from flashu.models.hub import checkpoint_folder
from flashu.models.pretrained import Pretrained, check_placement
from flashu.models.registry import check_room, resolve
from flashu.models.showo2.dropin.adopt import Block, Unpatchify, adopted
from flashu.models.showo2.load import load_model, load_processor, save_model
from flashu.models.showo2.model import ShowO2 as Architecture
from flashu.models.showo2.processor import Processor
from flashu.models.weights import checkpoint_hash

Model = TypeVar("Model", bound="ShowO2")


class ShowO2(Pretrained, Architecture):
    """A Show-o2 model with its tokenizer and autoencoder (``processor``), and its calibration if it came with one.

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
    def mmu_generate(self, images: Visual, questions: str, **settings: Any) -> str: ...
    @overload
    def mmu_generate(
        self, images: Visual | Sequence[Shown], questions: Sequence[str], **settings: Any
    ) -> list[str]: ...
    def mmu_generate(self, images: Any, questions: Any, **settings: Any) -> Any:
        """Answers to questions about images or videos; settings as in `Engine.answer`."""
        answers = self._engine().answer(images, questions, **settings)
        return [a.text for a in answers] if isinstance(answers, list) else answers.text

    def _engine(self) -> Engine:
        if self.processor is None:
            raise FlashUError("this model has no processor: load it with from_pretrained, or use flashu.Engine")
        return patch.engine_of(self) or Engine(self, self.processor, calibration=self.calibration)


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
