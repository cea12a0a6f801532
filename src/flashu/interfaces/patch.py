"""The papers' face: turn FlashU on and off for a model that is otherwise used as before."""

from __future__ import annotations

from typing import Any, overload
from weakref import WeakKeyDictionary

from torch import nn

from flashu.errors import FlashUError
from flashu.inference.calibrate.calibration import Calibration
from flashu.inference.engine import Engine
from flashu.inference.prepared import Fitted
from flashu.models.showo2.dropin.face import Face, unbind
from flashu.models.showo2.dropin.handle import DropIn
from flashu.models.showo2.model import ShowO2 as Architecture
from flashu.plan.recipe import FlashUConfig, Recipe, load_recipe

# Our own model is not touched: who is patched is written here, and forgotten with the model.
_patches: WeakKeyDictionary[nn.Module, Fitted] = WeakKeyDictionary()
# An instance of the original class is bound to its drop-in, which holds its weights but not itself.
_dropins: WeakKeyDictionary[nn.Module, DropIn] = WeakKeyDictionary()

Config = FlashUConfig | Recipe | str | None


@overload
def apply_flashu_patch(  # type: ignore[overload-overlap]
    model: Architecture, config: Config = None, *, calibration: Calibration | None = None, in_place: bool = False
) -> Engine: ...
@overload
def apply_flashu_patch(
    model: nn.Module, config: Config = None, *, calibration: Calibration | None = None, **options: Any
) -> DropIn: ...
def apply_flashu_patch(
    model: nn.Module,
    config: Config = None,
    *,
    calibration: Calibration | None = None,
    in_place: bool = False,
    **options: Any,
) -> Engine | DropIn:
    """Accelerate ``model.t2i_generate`` and ``model.mmu_generate``; default settings are the paper's.

    Applying again replaces the settings. ``calibration``: FFN statistics; by default those of the last patch or of the
    checkpoint, else they are gathered at the first image (generation) and here (understanding). ``in_place``: see
    `Engine`; for our own class. Returns the engine behind the model.

    An instance of the original authors' class keeps its own signatures (`lm_generate` and `mm_generate` too) and gets a
    `DropIn` behind it, with ``options`` exact_rope, unpatchify and understanding_block as of `flashu.adopt`. Its script
    sets the number of evaluations, so ``FlashUConfig.steps`` does not shorten them; a count there (>= 1) tells how many
    will come, which is otherwise inferred from the first three times (the first two evaluations are planned for as
    many as the images before, at first 49).
    """
    settings = config if config is not None else FlashUConfig()
    if not isinstance(model, Architecture):
        if in_place:
            raise FlashUError("in_place is for models of our own class: flashu.adopt makes one of the same weights")
        return _drop_in(model, load_recipe(settings), calibration, options)
    if options:
        raise FlashUError(f"{', '.join(options)}: these options are for models of the original authors' class")
    processor = getattr(model, "processor", None)
    if processor is None:
        raise FlashUError("this model has no processor: load it with flashu.ShowO2.from_pretrained")
    before = _patches.get(model)
    if calibration is None:
        calibration = before.calibration if before else getattr(model, "calibration", None)
    engine = Engine(model, processor, settings, calibration, in_place=in_place)
    if before is not None:
        before.release(model)
    if processor.vae is not None:
        engine.prepare("understanding")
    _patches[model] = engine.fitted
    return engine


def remove_flashu_patch(model: nn.Module) -> None:
    """Undo `apply_flashu_patch`; results are bit-identical to before: the model was never changed, except in the order
    of its FFN neurons under ``in_place``, which is restored."""
    if _dropins.pop(model, None) is not None:
        unbind(model)
    elif (fitted := _patches.pop(model, None)) is not None and isinstance(model, Architecture):
        fitted.release(model)
    else:
        raise FlashUError("this model is not patched")


def engine_of(model: nn.Module) -> Engine | None:
    """The engine behind a patched model of our own class."""
    fitted = _patches.get(model)
    return None if fitted is None else Engine.of(model, model.processor, fitted)  # type: ignore[arg-type]


def _drop_in(model: nn.Module, recipe: Recipe, calibration: Calibration | None, options: dict[str, Any]) -> DropIn:
    before = _dropins.get(model)
    if calibration is None and before is not None:
        calibration = before.calibration
    behind = DropIn(model, recipe, calibration, **options)
    if before is not None:
        unbind(model)
    Face(model, behind).bind()
    _dropins[model] = behind
    return behind
