"""An engine from what the options say; mistakes in them show before any weight is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flashu.cli.options import EngineOptions
from flashu.errors import FlashUError
from flashu.plan.presets import Target, tuned_on

if TYPE_CHECKING:
    import torch

    from flashu.inference.engine import Engine

SHORT = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
DTYPES = tuple(SHORT.values())


def open_engine(options: EngineOptions) -> Engine:
    """The engine these options describe; without a device, on CUDA where there is one."""
    tuned_on(options.preset, Target(options.model))
    dtype = find_dtype(options.dtype)
    from flashu.inference.calibrate.calibration import Calibration
    from flashu.inference.engine import Engine
    from flashu.models.registry import open_model
    from flashu.models.weights import checkpoint_hash

    model = open_model(
        options.model,
        dtype=dtype,
        device=find_device(options.device),
        offload=options.offload,
        quantize=options.quantize,
        pack=options.pack,
    )
    known = model.calibration
    if options.calibration is not None:
        known = Calibration.load(options.calibration, checkpoint_hash(model))
    return Engine(model, model.processor, options.preset, known, in_place=options.in_place)


def find_dtype(name: str | None) -> torch.dtype | None:
    """torch's dtype of a name, bf16, fp16 and fp32 included; None for None. `FlashUError` for other names."""
    if name is None:
        return None
    full = SHORT.get(name, name)
    if full not in DTYPES:
        raise FlashUError(f"there is no dtype {name!r}: give {', '.join((*DTYPES, *SHORT))}")
    import torch

    return getattr(torch, full)


def find_device(name: str | None) -> torch.device:
    """The device of a name (None: CUDA where there is one); `FlashUError` unless tensors can live there."""
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(name)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError) as error:  # no such kind; torch built without it; no such number
        raise FlashUError(f"there is no device {name!r} here: give cpu, or cuda where torch sees one") from error
    return found
