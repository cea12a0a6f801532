"""Drawing and answering many items of a scenes world with one engine: in batches, kept in a ledger."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from flashu.errors import FlashUError
from flashu.evaluation.ledger import Ledger, key_of
from flashu.inference.engine import Engine
from flashu.models.weights import checkpoint_hash
from flashu.plan import Task
from flashu.scenes.detector import Detected, detect
from flashu.scenes.world import SCENES, WORLDS, Scene, World, render, world_of

KEPT_NUMBERS = 4096
"""Latents of at most this many numbers are kept in the ledger, so that fidelity needs no second drawing."""

SceneQuestion = tuple[str, Scene | None]
"""A question and the scene it is about; None is an empty one."""
OnBatch = Callable[[int], None]
"""Called with the number of items of each finished batch."""


@dataclass(frozen=True, eq=False)
class Drawing:
    """The objects detected in one image, and its latents [c, h, w] in half precision where they are small."""

    objects: tuple[Detected, ...]
    latent: Tensor | None


def draw(
    engine: Engine,
    texts: Sequence[str],
    seeds: Sequence[int],
    *,
    batch: int = 32,
    steps: int | None = None,
    ledger: Ledger | None = None,
    on_batch: OnBatch = lambda count: None,
) -> list[Drawing]:
    """Draw the prompts and detect what the images show. A batch is kept as a whole: its images depend on it by
    rounding."""
    drawn_world(engine)  # its images can be scored
    ledger = ledger or Ledger()
    engine.prepare("generation", texts[0])
    identity = fingerprint(engine, "generation")
    found: list[Drawing] = []
    for at in range(0, len(texts), batch):
        part, own = list(texts[at : at + batch]), list(seeds[at : at + batch])
        key = key_of("draw", identity, part, own, steps or engine.layout.defaults.steps)
        found += map(_from_json, ledger.get_or_add(key, partial(_draw_batch, engine, part, own, steps)))
        on_batch(len(part))
    return found


def change(
    engine: Engine,
    sources: Sequence[Scene],
    texts: Sequence[str],
    seeds: Sequence[int],
    *,
    batch: int = 32,
    steps: int | None = None,
    ledger: Ledger | None = None,
    on_batch: OnBatch = lambda count: None,
    **settings: float,
) -> list[Drawing]:
    """Edit pictures of the scenes and detect what the results show. ``settings``: as of `Engine.edit`."""
    world = drawn_world(engine)
    ledger = ledger or Ledger()
    identity = fingerprint(engine, "generation")
    found: list[Drawing] = []
    for at in range(0, len(texts), batch):
        part, own = list(texts[at : at + batch]), list(seeds[at : at + batch])
        shown = sources[at : at + batch]
        about = [[astuple(o) for o in scene.objects] for scene in shown]
        chosen = {"steps": steps or engine.layout.defaults.steps, **settings}

        def work(shown: Sequence[Scene] = shown, part: list[str] = part, own: list[int] = own) -> list[dict[str, Any]]:
            pictures = [Image.fromarray(image) for image in render(shown)]
            made = engine.edit(pictures, part, seed=own, steps=steps, **settings)  # type: ignore[arg-type]
            return [_to_json(*pair) for pair in zip(detect(made.images, world), made.latents, strict=True)]

        found += map(_from_json, ledger.get_or_add(key_of("edit", identity, about, part, own, chosen), work))
        on_batch(len(part))
    return found


def answer(
    engine: Engine,
    questions: Sequence[SceneQuestion],
    *,
    batch: int = 64,
    ledger: Ledger | None = None,
    on_batch: OnBatch = lambda count: None,
) -> list[str]:
    """The answers' texts."""
    ledger = ledger or Ledger()
    engine.prepare("understanding")
    identity = fingerprint(engine, "understanding")
    found: list[str] = []
    for at in range(0, len(questions), batch):
        part = questions[at : at + batch]
        about = [[text, None if scene is None else [astuple(o) for o in scene.objects]] for text, scene in part]
        found += ledger.get_or_add(key_of("answer", identity, about), partial(_answer_batch, engine, part))
        on_batch(len(part))
    return found


def drawn_world(engine: Engine) -> World:
    """The world whose pictures this model draws; the exact detector reads no others."""
    defaults = engine.layout.defaults
    world = world_of(defaults.height, defaults.width)
    if not engine.layout.draws or world is None:
        sizes = " or ".join(f"{w.size}x{w.size}" for w in WORLDS.values())
        raise FlashUError(
            f"the scenes benchmarks read {sizes} images, this model draws {defaults.width}x{defaults.height}: "
            "its images cannot be scored by the exact detector"
        )
    return world


def asked_world(engine: Engine) -> World:
    """The world this model is asked about: its own, and the small one where it draws other pictures."""
    return world_of(engine.layout.defaults.height, engine.layout.defaults.width) or SCENES


def fingerprint(engine: Engine, task: Task) -> dict[str, Any]:
    """What the results of a prepared engine depend on, for one task: weights, methods, kept neurons."""
    recipe, calibration = engine.recipe, engine.calibration
    masks = {}
    for prune in recipe.ffn_prunes():
        if prune.task == task:
            assert calibration is not None
            scores = calibration.scores[prune.mask].numpy()
            masks[prune.mask] = hashlib.sha256(np.ascontiguousarray(scores).tobytes()).hexdigest()[:16]
    methods = recipe.to_dict() | {"methods": [method.to_dict() for method in recipe.of(task)]}
    del methods["name"]
    about = {"model": checkpoint_hash(engine.model), "dtype": str(engine.model.dtype), "recipe": methods}
    scheme = engine.model.quantization
    return about | {"masks": masks} | ({} if scheme is None else {"quantization": scheme})


def _draw_batch(engine: Engine, texts: list[str], seeds: list[int], steps: int | None) -> list[dict[str, Any]]:
    made = engine.generate(texts, seed=seeds, steps=steps)
    return [_to_json(*pair) for pair in zip(detect(made.images, drawn_world(engine)), made.latents, strict=True)]


def _answer_batch(engine: Engine, questions: Sequence[SceneQuestion]) -> list[str]:
    pixels = render([scene or Scene((), asked_world(engine)) for _, scene in questions])
    answers = engine.answer([Image.fromarray(image) for image in pixels], [text for text, _ in questions])
    return [given.text for given in answers]


def _to_json(objects: Sequence[Detected], latent: Tensor) -> dict[str, Any]:
    kept = None
    if latent.numel() <= KEPT_NUMBERS:
        half = latent.detach().cpu().half().numpy()
        kept = [list(half.shape), base64.b64encode(half.tobytes()).decode()]
    return {"objects": [[o.shape, o.colour, o.row, o.column, *o.centre] for o in objects], "latent": kept}


def _from_json(entry: dict[str, Any]) -> Drawing:
    objects = tuple(Detected(s, c, row, column, (x, y)) for s, c, row, column, x, y in entry["objects"])
    if entry["latent"] is None:
        return Drawing(objects, None)
    shape, text = entry["latent"]
    numbers = np.frombuffer(base64.b64decode(text), dtype=np.float16).astype(np.float32)
    return Drawing(objects, torch.from_numpy(numbers).reshape(shape))
