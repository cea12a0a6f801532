"""The papers' face: turn FlashU on and off for a model that is otherwise used as before."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from torch import nn

from flashu.calibrate.calibration import Calibration
from flashu.engine import Engine
from flashu.errors import FlashUError
from flashu.fitted import Fitted
from flashu.recipe import FlashUConfig, Recipe

# The model is not touched: who is patched is written here, and forgotten with the model.
_patches: WeakKeyDictionary[nn.Module, Fitted] = WeakKeyDictionary()


def apply_flashu_patch(
    model: nn.Module, config: FlashUConfig | Recipe | str | None = None, *, calibration: Calibration | None = None
) -> Engine:
    """Accelerate ``model.t2i_generate`` and ``model.mmu_generate``; default settings are the paper's.

    Applying again replaces the settings. ``calibration``: FFN statistics; by default those of the last patch or of the
    checkpoint, else they are gathered at the first image (generation) and here (understanding). Returns the engine
    behind the model.
    """
    processor = getattr(model, "processor", None)
    if processor is None:
        raise FlashUError("this model has no processor: load it with flashu.ShowO2.from_pretrained")
    before = _patches.get(model)
    if calibration is None:
        calibration = before.calibration if before else getattr(model, "calibration", None)
    engine = Engine(model, processor, config if config is not None else FlashUConfig(), calibration)  # type: ignore[arg-type]
    if processor.vae is not None:
        engine.prepare("understanding")
    _patches[model] = engine.fitted
    return engine


def remove_flashu_patch(model: nn.Module) -> None:
    """Undo `apply_flashu_patch`; the model was never changed, so its results are bit-identical to before."""
    if _patches.pop(model, None) is None:
        raise FlashUError("this model is not patched")


def engine_of(model: nn.Module) -> Engine | None:
    """The engine behind a patched model."""
    fitted = _patches.get(model)
    return None if fitted is None else Engine.of(model, model.processor, fitted)  # type: ignore[arg-type]
