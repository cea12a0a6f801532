"""What a draft learns from: questions, and the model's own answers to them, each given once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from flashu.errors import FlashUError
from flashu.inference.actions import AnswerRequest
from flashu.inference.engine import Engine
from flashu.models.pictures import Picture
from flashu.models.weights import checkpoint_hash
from flashu.plan.files import given_text
from flashu.scenes import questions
from flashu.scenes.sampler import FAMILIES, held_scene, training_scene
from flashu.scenes.world import Scene, World, render

DESCRIPTIONS = 0.3
"""Share of descriptions among the questions about scenes."""


@dataclass(frozen=True, eq=False)
class Asked:
    """A question about some images; about none, a message."""

    text: str
    images: tuple[Picture, ...] = ()

    def request(self, limit: int | None) -> AnswerRequest:
        return AnswerRequest(self.text, self.images, limit)


def about_scenes(world: World, count: int, seed: int, *, held_out: bool = False) -> list[Asked]:
    """Questions of all kinds and descriptions, about training scenes of a procedural world, or about test scenes."""
    rng = np.random.default_rng((seed, 700))
    scenes: list[Scene] = []
    texts: list[str] = []
    while len(scenes) < count:
        family = FAMILIES[int(rng.integers(len(FAMILIES)))]
        scene = held_scene(rng, world) if held_out else training_scene(family, rng, world)
        text = None
        if rng.random() < DESCRIPTIONS:
            text = questions.describe(scene)[0]
        else:
            kind = questions.QUESTION_KINDS[int(rng.integers(len(questions.QUESTION_KINDS)))]
            wants = questions.verdicts(kind, world)
            found = questions.ask(kind, scene, wants[int(rng.integers(len(wants)))], rng)
            text = None if found is None else found.text
        if text is not None:
            scenes.append(scene)
            texts.append(text)
    pictures = [picture for at in range(0, count, 500) for picture in render(scenes[at : at + 500])]
    return [Asked(text, (Image.fromarray(picture),)) for text, picture in zip(texts, pictures, strict=True)]


def listed(file: Path) -> list[Asked]:
    """Questions of a file of JSON lines, {"question": ..., "images": [paths]}; paths are relative to the file.
    `FlashUError` for a file that holds none."""
    asked = []
    for number, line in enumerate(given_text(file).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            paths = entry.get("images", [])
            asked.append(Asked(entry["question"], tuple(str(file.parent / path) for path in paths)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FlashUError(
                f'{file}, line {number}: give one object a line, {{"question": "...", "images": ["a.png"]}}'
            ) from error
    if not asked:
        raise FlashUError(f"{file} holds no questions: there is nothing to train on")
    return asked


def own_answers(
    engine: Engine,
    asked: Sequence[Asked],
    file: Path,
    *,
    batch: int = 64,
    limit: int | None = None,
    on_batch: Callable[[int], None] = lambda count: None,
) -> list[list[int]]:
    """The tokens of the engine's greedy answers, kept in ``file`` as they are given; those that are there are not given
    again. ``limit``: most tokens of one. `FlashUError` where the file is of other questions or of another model."""
    about: dict[str, object] = {"model": checkpoint_hash(engine.model), "limit": limit, "asked": _digest(asked)}
    known = _read(file, about)
    with file.open("a", encoding="utf-8") as lines:
        if not known:
            lines.write(json.dumps(about) + "\n")
        for at in range(len(known), len(asked), batch):
            part = asked[at : at + batch]
            for answer in engine.respond([one.request(limit) for one in part]):
                known.append(answer.tokens)
                lines.write(json.dumps(answer.tokens) + "\n")
            lines.flush()
            on_batch(len(part))
    return known[: len(asked)]


def _digest(asked: Sequence[Asked]) -> str:
    return hashlib.sha256(json.dumps([one.text for one in asked]).encode()).hexdigest()[:16]


def _read(file: Path, about: dict[str, object]) -> list[list[int]]:
    if not file.exists():
        return []
    *whole, last = file.read_text(encoding="utf-8").split("\n")
    if last:  # stopped in the middle of a line
        file.write_text("".join(f"{line}\n" for line in whole), encoding="utf-8")
    if not whole:
        return []
    if json.loads(whole[0]) != about:
        raise FlashUError(
            f"{file} holds answers to other questions, or of another model: delete it, or give a new folder"
        )
    return [json.loads(line) for line in whole[1:]]
