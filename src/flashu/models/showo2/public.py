"""Show-o2 as its users hold it: loaded, drawing and answering by itself."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import torch
from PIL import Image
from torch import nn

from flashu.errors import FlashUError
from flashu.inference.calibrate.calibration import CALIBRATION, Calibration
from flashu.inference.engine import Engine
from flashu.inference.requests import Shown, Visual
from flashu.interfaces import patch
from flashu.models.hub import Pushed, checkpoint_folder
from flashu.models.offload import offload as offload_to
from flashu.models.quantize import Quantized
from flashu.models.quantize import quantize as quantize_model
from flashu.models.registry import resolve
from flashu.models.showo2.dropin.adopt import Block, Layout, adopted
from flashu.models.showo2.load import load_model, load_processor, save_model
from flashu.models.showo2.model import ShowO2 as Architecture
from flashu.models.showo2.processor import Processor
from flashu.models.weights import checkpoint_hash


class ShowO2(Pushed, Architecture):
    """A Show-o2 model with its tokenizer and autoencoder (``processor``), and its calibration if it came with one.

    `t2i_generate` and `mmu_generate` run the exact engine, or FlashU after `flashu.apply_flashu_patch`.
    """

    processor: Processor | None = None
    calibration: Calibration | None = None

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        autoencoder: str | os.PathLike[str] | None = "auto",
        offload: bool = False,
        quantize: str | None = None,
        pack: bool = False,
        exact_rope: bool | None = None,
    ) -> ShowO2:
        """Load a folder, a hub id or "scenes"; ``dtype`` None = as stored, ``device`` None = CPU.

        Reads the official layout (`pytorch_model.bin`, sharded, or safetensors, with the constructor's `config.json`)
        and ours. ``autoencoder``: a Wan2.1 folder or `.pth`; "auto" = the checkpoint's own, else the hub's; None =
        latents only. ``offload``: the weights stay in main memory and visit ``device`` a projection or FFN at a time.
        ``quantize``: see `quantize`. ``pack``: for bf16 on a CPU, see `pack`; costs the weights' memory once more.
        ``exact_rope``: rotary frequencies stay fp32 at a lower ``dtype``, where the original rounds them; None = as the
        checkpoint says (official ones: rounded). Raises `CheckpointError`, leaving nothing half-loaded.
        """
        if offload and quantize is not None:
            raise FlashUError("accelerate cannot move torchao's tensors: give offload or quantize, not both")
        if pack and (offload or quantize is not None):
            raise FlashUError("packed weights are neither offloaded nor quantized: leave pack out, or the other")
        entry = resolve(source)
        place = "cpu" if offload else device
        model = load_model(entry.source, dtype or entry.dtype, place, cls, exact_rope)
        model.processor = load_processor(entry.source, device=device, autoencoder=autoencoder)
        file = checkpoint_folder(entry.source) / CALIBRATION
        if file.exists():
            model.calibration = Calibration.load(file, checkpoint_hash(model))
        if quantize is not None:
            model.quantize(quantize)
        if pack:
            model.pack()
        if offload:
            offload_to(model, device or "cpu")
        return model

    def quantize(self, scheme: str, *, lm_head: bool = False) -> Quantized:
        """Quantize the projections of decoder and flow head, and ``lm_head`` if asked, with torchao: "int8", "fp8"
        (weights, and activations as they come), "int8-weight", "fp8-weight". Returns, and logs, what it was applied
        to. For good; `FlashUError`, before anything is touched, where it cannot be."""
        return quantize_model(self, scheme, lm_head=lm_head)

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
    unpatchify: Layout = "raster",
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
