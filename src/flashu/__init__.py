"""flashu: fast unified multimodal models. One line to load, one to accelerate, numbers you can rerun."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from flashu.calibrate.calibration import Calibration
from flashu.engine import Answer, Engine, Generation
from flashu.errors import (
    CalibrationError,
    CheckpointError,
    FlashUError,
    ImageError,
    PromptError,
    RecipeError,
)
from flashu.patch import apply_flashu_patch, remove_flashu_patch
from flashu.recipe import PRESETS, FlashUConfig, Recipe, UnderstandingConfig
from flashu.showo2 import ShowO2

__version__ = "0.1.0"


def load(
    source: str | os.PathLike[str] = "scenes",
    recipe: Recipe | FlashUConfig | str | Path = "exact",
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    compile: bool = False,
) -> Engine:
    """An engine for "scenes" (in the package), an official Show-o2 hub id or a folder; see `ShowO2.from_pretrained`."""
    model = ShowO2.from_pretrained(source, dtype=dtype, device=device)
    assert model.processor is not None
    return Engine(model, model.processor, recipe, model.calibration, compile=compile)


__all__ = [
    "PRESETS",
    "Answer",
    "Calibration",
    "CalibrationError",
    "CheckpointError",
    "Engine",
    "FlashUConfig",
    "FlashUError",
    "Generation",
    "ImageError",
    "PromptError",
    "Recipe",
    "RecipeError",
    "ShowO2",
    "UnderstandingConfig",
    "apply_flashu_patch",
    "load",
    "remove_flashu_patch",
]
