"""Recipe files and calibrations that are none, or of the wrong kind."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from flashu import Engine
from flashu.inference.calibrate.calibration import FORMAT, Calibration
from flashu.models.weights import checkpoint_hash
from flashu.plan.methods import METHODS
from flashu.plan.presets import load_recipe
from flashu.plan.recipe import Recipe
from tests.robustness.cases import Case

VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1,
    3,
    10**9,
    2**70,
    0.5,
    -0.5,
    1.5,
    1e-300,
    1e300,
    math.nan,
    math.inf,
    "",
    "x",
    "5",
    [],
    [1],
    [1, 2],
    [math.nan, 1],
    {},
    {"a": 1},
    [[1]],
)
TEXTS: dict[str, bytes] = {
    "empty": b"",
    "a list": b"[]",
    "null": b"null",
    "a number": b"5",
    "binary": bytes(range(256)),
    "UTF-16": "{}".encode("utf-16"),
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "a byte order mark": b"\xef\xbb\xbf{}",
    "methods: 5": b'{"methods": 5}',
    "methods: null": b'{"methods": null}',
    "methods: [5]": b'{"methods": [5]}',
    "a list for a name": b'{"methods": [{"method": ["head_cache"]}]}',
    "a huge number": b'{"steps": ' + b"9" * 9999 + b"}",
}


def cases(folder: Path, seed: int, engine: Engine) -> list[Case]:
    listed = list(itertools.chain(_recipes(folder), _calibrations(folder, engine)))
    random.Random(seed).shuffle(listed)
    return listed


def _recipes(folder: Path) -> Iterator[Case]:
    for what, data in TEXTS.items():
        yield Case("recipes", what, lambda data=data: _read(folder, data), "either" if "mark" in what else "refuse")
    for name, method in METHODS.items():
        task = sorted(method.tasks)[0]
        for field, value in itertools.product(sorted(f.name for f in fields(method)), VALUES):
            entry = {"method": name, "task": task, field: value}
            yield Case("recipes", f"{name} {field} = {value!r}", lambda entry=entry: _round({"methods": [entry]}))
    for field, value in itertools.product(sorted(f.name for f in fields(Recipe)), VALUES):
        yield Case("recipes", f"{field} = {value!r}", lambda field=field, value=value: _round({field: value}))
    for source in (folder, Path("/dev/zero"), folder / "none", 5, None, "", "exactt", "\0", b"x", [], "x" * 5000):
        yield Case("recipes", f"{source!r:.40}", lambda source=source: load_recipe(source), "refuse")


def _read(folder: Path, data: bytes) -> None:
    file = folder / "recipe.json"
    file.write_bytes(data)
    load_recipe(str(file))


def _round(data: dict[str, Any]) -> None:
    """A recipe that is taken can be written and read again."""
    recipe = Recipe.from_dict(data)
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def _calibrations(folder: Path, engine: Engine) -> Iterator[Case]:
    file, model = folder / "calibration.safetensors", engine.model
    about = {"format": FORMAT, "model_hash": checkpoint_hash(model), "made_from": "{}"}
    spec = model.spec
    good = torch.rand(spec.layers, spec.neurons)

    def read(tensors: dict[str, Any], metadata: dict[str, str] | None) -> None:
        save_file(tensors, file, metadata)
        known = Calibration.load(file, checkpoint_hash(model))
        used = Engine(model, model.processor, "paper", known)
        used.generate("a red circle", steps=2, seed=0)

    for name in ("generation", "understanding", "strange"):
        for what, tensor in {
            "NaN": good * math.nan,
            "infinite": good / 0,
            "one layer": good[:1],
            "fewer neurons": good[:, :3].clone(),
            "more neurons": torch.rand(spec.layers, spec.neurons + 1),
            "integers": good.int(),
            "booleans": good > 1,
            "half": good.half(),
            "flat": good.flatten(),
            "empty": good[:0],
            "complex": good.to(torch.complex64),
        }.items():
            yield Case(
                "calibrations", f"{name} {what}", lambda n=name, t=tensor: read({f"scores.{n}": t.contiguous()}, about)
            )
    for what, tensor in {"NaN": torch.full((spec.layers,), math.nan), "short": torch.rand(1), "2-d": good}.items():
        yield Case("calibrations", f"correlation {what}", lambda t=tensor: read({"correlation": t}, about))
    for key in about:
        left = {name: value for name, value in about.items() if name != key}
        yield Case("calibrations", f"without {key}", lambda left=left: read({"scores.x": good}, left), "refuse")
        for value in ("", "x", "{", "null", "5", "\x1b[2J"):
            strange = about | {key: value}
            yield Case("calibrations", f"{key} = {value!r}", lambda s=strange: read({"scores.x": good}, s))
    yield Case("calibrations", "no metadata", lambda: read({"scores.x": good}, None), "refuse")

    def bytes_of(data: bytes) -> None:
        file.write_bytes(data)
        Calibration.load(file)

    for what, data in TEXTS.items():
        yield Case("calibrations", what, lambda data=data: bytes_of(data), "refuse")

    def pipe() -> None:
        path = folder / "pipe"
        if not path.exists():
            os.mkfifo(path)
        Calibration.load(path)

    yield Case("calibrations", "a pipe", pipe, "refuse")
    for path in (folder, "/dev/zero", folder / "none", "\0", "x" * 5000):
        yield Case("calibrations", f"{str(path)!r:.40}", lambda path=path: Calibration.load(path), "refuse")
