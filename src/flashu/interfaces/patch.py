"""The papers' interface: turn FlashU on and off for a model that is otherwise used as before."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from flashu.errors import FlashUError
from flashu.inference.calibrate.calibration import Calibration
from flashu.inference.engine import Engine
from flashu.inference.prepared import PreparedRecipe
from flashu.models.registry import families
from flashu.plan.presets import FlashUConfig, RecipeSource
from flashu.plan.recipe import Recipe

# Our own model is not touched: who is patched is written here, and forgotten with the model.
_patches: WeakKeyDictionary[nn.Module, PreparedRecipe] = WeakKeyDictionary()
# An instance of an authors' class is bound to its drop-in, which holds its weights but not itself.
_dropins: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()

Config = FlashUConfig | Recipe | str | None


def apply_flashu_patch(
    model: nn.Module,
    config: Config = None,
    *,
    calibration: Calibration | None = None,
    in_place: bool = False,
    **options: Any,
) -> Any:
    """Accelerate a model's own generating methods (``t2i_generate``, ``mmu_generate``), by default as in the paper.

    Applying again replaces the settings. ``calibration``: FFN statistics; by default those of the last patch or of the
    checkpoint, else they are gathered at the first image (generation) and here (understanding). ``in_place``: see
    `Engine`; for our own classes. Returns the engine behind the model.

    An instance of the original authors' class keeps its own signatures and gets a drop-in behind it, with ``options``
    of its family (Show-o2: exact_rope, unpatchify and understanding_block as of `flashu.adopt`). Its script sets the
    number of evaluations, so ``FlashUConfig.steps`` does not shorten them; a count there (>= 1) tells how many will
    come, which is otherwise inferred from the first three times.
    """
    settings = config if config is not None else FlashUConfig()
    if not (hasattr(model, "spec") and hasattr(model, "layout")):
        if in_place:
            raise FlashUError("in_place is for models of our own classes: flashu.adopt makes one of the same weights")
        return _drop_in(model, settings, calibration, options)
    if options:
        raise FlashUError(f"{', '.join(options)}: these options are for models of the original authors' classes")
    processor = getattr(model, "processor", None)
    if processor is None:
        raise FlashUError("this model has no processor: load it with from_pretrained")
    before = _patches.get(model)
    if calibration is None:
        calibration = before.calibration if before else getattr(model, "calibration", None)
    engine = Engine(model, processor, settings, calibration, in_place=in_place)  # type: ignore[arg-type]
    if before is not None:
        before.release(model)  # type: ignore[arg-type]
    if engine.layout.sees:
        engine.prepare("understanding")
    _patches[model] = engine.prepared
    return engine


def remove_flashu_patch(model: nn.Module) -> None:
    """Undo `apply_flashu_patch`; results are bit-identical to before: the model was never changed, except in the order
    of its FFN neurons under ``in_place``, which is restored."""
    if (behind := _dropins.pop(model, None)) is not None:
        behind.unbind(model)
    elif (prepared := _patches.pop(model, None)) is not None:
        prepared.release(model)  # type: ignore[arg-type]
    else:
        raise FlashUError("this model is not patched")


def engine_of(model: Any) -> Engine | None:
    """The engine behind a patched model of our own classes."""
    prepared = _patches.get(model)
    return None if prepared is None else Engine.of(model, model.processor, prepared)


def _drop_in(model: nn.Module, recipe: RecipeSource, calibration: Calibration | None, options: dict[str, Any]) -> Any:
    before = _dropins.get(model)
    if calibration is None and before is not None:
        calibration = before.calibration
    known = next((family for family in families() if family.recognizes(model)), None)
    if known is None or known.authors is None:
        titles = ", ".join(family.title for family in families() if family.authors is not None)
        raise FlashUError(f"{type(model).__name__} is no model of ours, nor of the original authors' class: {titles}")
    behind = known.authors(model, recipe, calibration, **options)
    if before is not None:
        before.unbind(model)
    behind.bind(model)
    _dropins[model] = behind
    return behind
