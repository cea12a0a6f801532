"""The lab's items by name in the order of the report, and measuring one of them."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from flashu.evaluation.ledger import key_of
from flashu.inference.calibrate.calibration import Calibration
from flashu.models.weights import checkpoint_hash
from flashu.studies.lab.cases import presets
from flashu.studies.lab.components import components
from flashu.studies.lab.cost import cost
from flashu.studies.lab.lab import Lab
from flashu.studies.lab.pareto import pareto
from flashu.studies.lab.quantization import quantization
from flashu.studies.lab.result import Result
from flashu.studies.lab.sensitivity import sensitivity
from flashu.studies.lab.similarity import similarity
from flashu.studies.lab.specialization import specialization
from flashu.studies.lab.tables import ablation, table1, table2, table3
from flashu.studies.lab.vnorm import vnorm

ITEMS: dict[str, Callable[[Lab], Result]] = {
    item.__name__: item
    for item in (
        table1, table2, table3, ablation, pareto, specialization, vnorm, similarity, sensitivity, components, cost,
        quantization,
    )
}  # fmt: skip


def measure(name: str, lab: Lab, folder: Path, *, again: bool = False) -> None:
    """Measure an item and write NAME.json, .csv and .png into ``folder``. A result of the same identity that is
    already there is kept unless ``again``. Raises `FlashUError` where the model does not allow the item."""
    identity = identity_of(lab)
    if not again and up_to_date(folder / f"{name}.json", identity):
        return
    began = time.perf_counter()
    result = ITEMS[name](lab)
    known = calibration_hash(lab.engine.calibration)
    result.about.update(calibration=known, identity=identity, seconds=time.perf_counter() - began)
    result.save(folder, name)


def up_to_date(path: Path, identity: str) -> bool:
    return path.exists() and json.loads(path.read_text())["about"].get("identity") == identity


def identity_of(lab: Lab) -> str:
    """A hash of what the lab's results depend on: weights, calibration, presets, sizes, seed, drawing settings."""
    model, defaults = lab.engine.model, lab.engine.layout.defaults
    recipes = [case.recipe.to_dict() for case in presets(lab)]
    return key_of(
        checkpoint_hash(model), str(model.dtype), model.quantization, calibration_hash(lab.engine.calibration),
        recipes, asdict(lab.size), lab.seed, defaults.steps, defaults.guidance,
    )  # fmt: skip


def calibration_hash(calibration: Calibration | None) -> str | None:
    """A hash of the statistics themselves; None where none were given, so that they are gathered anew."""
    if calibration is None:
        return None
    tensors = dict(calibration.scores)
    if calibration.correlation is not None:
        tensors["correlation"] = calibration.correlation
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
