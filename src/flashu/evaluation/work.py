"""Drawing and answering many items with one engine: in batches, kept in a ledger."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from flashu.errors import FlashUError
from flashu.evaluation.score_ledger import Ledger, key_of
from flashu.inference.engine import Engine
from flashu.models.weights import checkpoint_hash
from flashu.plan import Task
from flashu.scenes.detector import Detected, detect
from flashu.scenes.world import SCENES, WORLDS, Scene, World, render, world_of

KEPT_NUMBERS = 4096
"""Latents of at most this many numbers are kept in the ledger, so that fidelity needs no second drawing."""

Tick = Callable[[int], None]


@dataclass(frozen=True, eq=False)
class Drawn:
    """What was seen in one image, and its latents [c, h, w] in half precision where they are small."""

    seen: tuple[Detected, ...]
    latent: Tensor | None


@dataclass(frozen=True)
class Shown:
    """A question and the scene it is about; ``scene`` None is an empty board."""

    text: str
    scene: Scene | None


def draw(
    engine: Engine,
    texts: Sequence[str],
    seeds: Sequence[int],
    *,
    batch: int = 32,
    steps: int | None = None,
    ledger: Ledger | None = None,
    tick: Tick | None = None,
) -> list[Drawn]:
    """Draw and look. Items are drawn in fixed batches, because a layer-skipping list is the batch's."""
    world = readable(engine)
    ledger = ledger or Ledger()
    engine.prepare("generation", texts[0])
    identity = fingerprint(engine, "generation")
    found: list[Drawn] = []
    for at in range(0, len(texts), batch):
        part, own = list(texts[at : at + batch]), list(seeds[at : at + batch])
        key = key_of("draw", identity, part, own, steps or engine.processor.defaults.steps)
        value = ledger.recall(key)
        if value is None:
            made = engine.generate(part, seed=own, steps=steps)
            value = [_drawn_json(*pair) for pair in zip(detect(made.images, world), made.latents, strict=True)]
            ledger.record(key, value)
        found += [_drawn(entry) for entry in value]
        if tick is not None:
            tick(len(part))
    return found


def answer(
    engine: Engine,
    asked: Sequence[Shown],
    *,
    batch: int = 64,
    ledger: Ledger | None = None,
    tick: Tick | None = None,
) -> list[str]:
    """The answers' texts."""
    ledger = ledger or Ledger()
    engine.prepare("understanding")
    identity = fingerprint(engine, "understanding")
    said: list[str] = []
    for at in range(0, len(asked), batch):
        part = asked[at : at + batch]
        content = [[s.text, None if s.scene is None else [astuple(o) for o in s.scene.objects]] for s in part]
        key = key_of("answer", identity, content)
        value = ledger.recall(key)
        if value is None:
            scenes = [s.scene or Scene((), asked_about(engine)) for s in part]
            pictures = [Image.fromarray(pixels) for pixels in render(scenes)]
            value = [a.text for a in engine.answer(pictures, [s.text for s in part])]
            ledger.record(key, value)
        said += value
        if tick is not None:
            tick(len(part))
    return said


def readable(engine: Engine) -> World:
    """The world whose pictures this model draws; the exact detector reads no others."""
    defaults = engine.processor.defaults
    world = world_of(defaults.height, defaults.width)
    if engine.processor.vae is None or world is None:
        sizes = " or ".join(f"{w.size}x{w.size}" for w in WORLDS.values())
        raise FlashUError(
            f"the scenes benchmarks read {sizes} images, this model draws {defaults.width}x{defaults.height}: "
            "its images cannot be scored by the exact detector"
        )
    return world


def asked_about(engine: Engine) -> World:
    """The world this model is asked about: its own, and the small one where it draws other pictures."""
    return world_of(engine.processor.defaults.height, engine.processor.defaults.width) or SCENES


def fingerprint(engine: Engine, task: Task) -> dict[str, Any]:
    """What the results of a prepared engine depend on, for one task: weights, methods, kept neurons."""
    recipe = engine.recipe
    known = engine.calibration
    masks = {}
    for prune in recipe.ffn_prunes():
        if prune.task == task:
            assert known is not None
            scores = known.scores[prune.mask].numpy()
            masks[prune.mask] = hashlib.sha256(np.ascontiguousarray(scores).tobytes()).hexdigest()[:16]
    told = recipe.to_dict()
    told["methods"] = [m.to_dict() for m in recipe.of(task)]
    del told["name"]
    scheme = engine.model.quantization
    narrow = {} if scheme is None else {"quantization": scheme}
    about = {"model": checkpoint_hash(engine.model), "dtype": str(engine.model.dtype), **narrow}
    return about | {"recipe": told, "masks": masks}


def _drawn_json(seen: Sequence[Detected], latent: Tensor) -> dict[str, Any]:
    kept = None
    if latent.numel() <= KEPT_NUMBERS:
        half = latent.detach().cpu().half().numpy()
        kept = [list(half.shape), base64.b64encode(half.tobytes()).decode()]
    return {"seen": [[o.shape, o.colour, o.row, o.column, *o.centre] for o in seen], "latent": kept}


def _drawn(entry: dict[str, Any]) -> Drawn:
    seen = tuple(Detected(s, c, row, column, (x, y)) for s, c, row, column, x, y in entry["seen"])
    if entry["latent"] is None:
        return Drawn(seen, None)
    shape, text = entry["latent"]
    numbers = np.frombuffer(base64.b64decode(text), dtype=np.float16).astype(np.float32)
    return Drawn(seen, torch.from_numpy(numbers).reshape(shape))
