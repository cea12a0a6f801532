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
from flashu.recipe import PRESETS, FlashUConfig, Recipe, UnderstandingConfig

if TYPE_CHECKING:
    import torch

    from flashu.calibrate.calibration import Calibration
    from flashu.chat import ChatModel, ChatProcessor
    from flashu.engine import Answer, Engine, Generation
    from flashu.models.showo2.video import Video
    from flashu.patch import apply_flashu_patch, remove_flashu_patch
    from flashu.pipeline import Pipeline, PipelineOutput
    from flashu.showo2 import ShowO2, adopt

__version__ = "0.1.0"

# What needs torch is imported when first asked for, so that `flashu --help` and recipes open at once.
_LATER = {
    "Answer": "engine",
    "Calibration": "calibrate.calibration",
    "ChatModel": "chat",
    "ChatProcessor": "chat",
    "Engine": "engine",
    "Generation": "engine",
    "Pipeline": "pipeline",
    "PipelineOutput": "pipeline",
    "ShowO2": "showo2",
    "Video": "models.showo2.video",
    "adopt": "showo2",
    "apply_flashu_patch": "patch",
    "remove_flashu_patch": "patch",
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
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    compile: bool = False,
    graphs: bool = False,
    in_place: bool = False,
    offload: bool = False,
    quantize: str | None = None,
    pack: bool = False,
) -> Engine:
    """An engine for "scenes" (in the package), an official Show-o2 hub id or a folder; see `ShowO2.from_pretrained` and
    `Engine`."""
    from flashu.engine import Engine
    from flashu.showo2 import ShowO2

    model = ShowO2.from_pretrained(source, dtype=dtype, device=device, offload=offload, quantize=quantize, pack=pack)
    assert model.processor is not None
    return Engine(model, model.processor, recipe, model.calibration, compile=compile, graphs=graphs, in_place=in_place)


__all__ = [
    "PRESETS",
    "Answer",
    "Calibration",
    "CalibrationError",
    "ChatModel",
    "ChatProcessor",
    "CheckpointError",
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
    "ShowO2",
    "UnderstandingConfig",
    "Video",
    "adopt",
    "apply_flashu_patch",
    "load",
    "remove_flashu_patch",
]
