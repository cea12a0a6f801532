"""An engine from what the options say; faults of the small things show before the weights are read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flashu.errors import FlashUError
from flashu.plan.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    import torch

    from flashu.inference.engine import Engine

DTYPES = ("float32", "bfloat16", "float16")


def open_engine(
    model: str,
    recipe: str | Recipe,
    dtype: str | None,
    device: str | None,
    calibration: Path | None = None,
    *,
    in_place: bool = False,
    offload: bool = False,
    quantize: str | None = None,
    pack: bool = False,
) -> Engine:
    """The engine of ``model`` under ``recipe``. ``device`` None: CUDA where there is one."""
    settled = load_recipe(recipe, model)
    if dtype is not None and dtype not in DTYPES:
        raise FlashUError(f"there is no dtype {dtype!r}: give {', '.join(DTYPES)}")
    import torch

    from flashu.inference.calibrate.calibration import Calibration
    from flashu.inference.engine import Engine
    from flashu.models.showo2.public import ShowO2
    from flashu.models.weights import checkpoint_hash

    place = usable(device)
    number = None if dtype is None else getattr(torch, dtype)
    opened = ShowO2.from_pretrained(model, dtype=number, device=place, offload=offload, quantize=quantize, pack=pack)
    known = opened.calibration if calibration is None else Calibration.load(calibration, checkpoint_hash(opened))
    assert opened.processor is not None
    return Engine(opened, opened.processor, settled, known, in_place=in_place)


def usable(device: str | None) -> torch.device:
    """The device a name stands for; `FlashUError` unless tensors can live there."""
    import torch

    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError) as error:  # no such kind; torch built without it; no such number
        raise FlashUError(f"there is no device {device!r} here: give cpu, or cuda where torch sees one") from error
    return found
