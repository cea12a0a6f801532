"""An engine from what the options say; mistakes in them show before any weight is read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flashu.cli.options import EngineOptions
from flashu.plan.presets import Target, tuned_on

if TYPE_CHECKING:
    from flashu.inference.engine import Engine


def open_engine(options: EngineOptions, draft: str | None = None, adapter: Path | None = None) -> Engine:
    """The engine these options describe; without a device, on CUDA where there is one. ``draft``, ``adapter``: as of
    `Engine`."""
    tuned_on(options.preset, Target(options.model))
    from flashu.inference.calibrate.calibration import Calibration
    from flashu.inference.engine import Engine
    from flashu.models.registry import open_model
    from flashu.models.weights import checkpoint_hash

    model = open_model(
        options.model,
        recipe=options.preset,
        in_place=options.in_place,
        dtype=options.dtype,
        device=options.device,
        offload=options.offload,
        quantize=options.quantize,
        pack=options.pack,
    )
    known = model.calibration
    if options.calibration is not None:
        known = Calibration.load(options.calibration, checkpoint_hash(model))
    return Engine(
        model, model.processor, options.preset, known, in_place=options.in_place, draft=draft, adapter=adapter
    )
