"""Folders of drafts, with config.json damaged."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

from flashu import Engine
from flashu.models.registry import ASSETS
from tests.robustness.cases import Case
from tests.robustness.checkpoints import KINDS, STRANGE, changed, leaves

SHIPPED = ASSETS / "drafts" / "scenes"
MOST = 400
"""Of all places and values, as many, drawn at random."""


def cases(folder: Path, seed: int, engine: Engine) -> list[Case]:
    data = json.loads((SHIPPED / "config.json").read_text())
    made = []
    for path, old in leaves(data):
        for value in STRANGE:
            if value == old and type(value) is type(old):
                continue
            text = json.dumps(changed(data, path, value))
            made.append(Case("drafts", f"{'.'.join(path)} = {value!r}", lambda t=text: _used(folder, engine, text=t)))
    for file in ("config.json", "model.safetensors"):
        for what, make in KINDS.items():
            made.append(
                Case("drafts", f"{file}: {what}", lambda f=file, m=make: _used(folder, engine, other=(f, m)), "refuse")
            )
    random.Random(seed).shuffle(made)
    return made[:MOST]


def _used(folder: Path, engine: Engine, text: str | None = None, other: Any = None) -> None:
    place = folder / "draft"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for file in SHIPPED.iterdir():
        (place / file.name).symlink_to(file)
    if text is not None:
        (place / "config.json").unlink()
        (place / "config.json").write_text(text)
    if other is not None:
        (place / other[0]).unlink()
        other[1](place / other[0])
    from PIL import Image

    drafted = Engine(engine.model, engine.processor, "exact", draft=str(place))
    given = (Image.new("RGB", (64, 64), "red"), "how many circles are there?")
    assert drafted.answer(*given, max_new_tokens=3).tokens == engine.answer(*given, max_new_tokens=3).tokens
