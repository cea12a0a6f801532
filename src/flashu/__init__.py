"""flashu: fast unified multimodal models. One line to load, one to accelerate, numbers you can rerun."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashu.errors import (
    CalibrationError,
    CheckpointError,
    FlashUError,
    ImageError,
    PromptError,
    RecipeError,
)
from flashu.plan.presets import PRESETS, FlashUConfig, UnderstandingConfig
from flashu.plan.recipe import Recipe

if TYPE_CHECKING:
    import torch

    from flashu.inference.calibrate.calibration import Calibration
    from flashu.inference.engine import Answer, Engine, Generation
    from flashu.inference.speculate import DraftSource
    from flashu.interfaces.chat import ChatModel, ChatProcessor
    from flashu.interfaces.patch import apply_flashu_patch, remove_flashu_patch
    from flashu.interfaces.pipeline import Pipeline, PipelineOutput
    from flashu.models.bagel.public import Bagel
    from flashu.models.emu3.public import Emu3
    from flashu.models.showo.public import ShowO
    from flashu.models.showo2.public import ShowO2, adopt
    from flashu.models.video import Video
    from flashu.training.mod import UniModConfig
    from flashu.training.patch import apply_unimod, remove_unimod

__version__ = "0.1.0"

# What needs torch is imported when first asked for, so that `flashu --help` and recipes open at once.
_LATER = {
    "Answer": "inference.engine",
    "Bagel": "models.bagel.public",
    "Calibration": "inference.calibrate.calibration",
    "ChatModel": "interfaces.chat",
    "ChatProcessor": "interfaces.chat",
    "Emu3": "models.emu3.public",
    "Engine": "inference.engine",
    "Generation": "inference.engine",
    "Pipeline": "interfaces.pipeline",
    "PipelineOutput": "interfaces.pipeline",
    "ShowO": "models.showo.public",
    "ShowO2": "models.showo2.public",
    "Video": "models.video",
    "adopt": "models.showo2.public",
    "UniModConfig": "training.mod",
    "apply_flashu_patch": "interfaces.patch",
    "apply_unimod": "training.patch",
    "remove_flashu_patch": "interfaces.patch",
    "remove_unimod": "training.patch",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def load(
    source: str | os.PathLike[str] = "scenes",
    recipe: Recipe | FlashUConfig | str | Path = "exact",
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | int | None = None,
    torch_dtype: torch.dtype | str | None = None,
    compile: bool = False,
    graphs: bool = False,
    in_place: bool = False,
    offload: bool = False,
    quantize: str | None = None,
    pack: bool = False,
    draft: DraftSource = None,
) -> Engine:
    """An engine for "scenes" (in the package), an official hub id or a checkpoint folder; see the family's
    ``from_pretrained`` (`ShowO2.from_pretrained`) and `Engine`. ``dtype`` (or ``torch_dtype``): as stored unless given,
    by torch's dtype or its name; ``device``: CUDA where there is one unless given."""
    from flashu.inference.engine import Engine
    from flashu.models.registry import open_model

    dtype = torch_dtype if dtype is None else dtype
    held = {"offload": offload, "quantize": quantize, "pack": pack}
    model = open_model(source, recipe=recipe, in_place=in_place, dtype=dtype, device=device, **held)
    settings = {"compile": compile, "graphs": graphs, "in_place": in_place, "draft": draft}
    return Engine(model, model.processor, recipe, model.calibration, **settings)  # type: ignore[arg-type]


__all__ = [
    "PRESETS",
    "Answer",
    "Bagel",
    "Calibration",
    "CalibrationError",
    "ChatModel",
    "ChatProcessor",
    "CheckpointError",
    "Emu3",
    "Engine",
    "FlashUConfig",
    "FlashUError",
    "Generation",
    "ImageError",
    "Pipeline",
    "PipelineOutput",
    "PromptError",
    "Recipe",
    "RecipeError",
    "ShowO",
    "ShowO2",
    "UnderstandingConfig",
    "UniModConfig",
    "Video",
    "adopt",
    "apply_flashu_patch",
    "apply_unimod",
    "load",
    "remove_flashu_patch",
    "remove_unimod",
]
