"""The demo's items: prompts to draw and questions to answer, of every category and kind, and what comes of one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

from PIL import Image

from flashu.errors import FlashUError
from flashu.scenes import benchmark
from flashu.scenes import edits as instructions
from flashu.scenes.benchmark import CATEGORIES, QUESTION_KINDS, Prompt, Question
from flashu.scenes.edits import EDIT_KINDS, Edit
from flashu.scenes.world import SCENES, World, render

SEEDS_PER_PROMPT = 2
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Item:
    """One image, edit or answer. ``group``: category of the prompt, kind of the edit or question. ``text``: the prompt,
    instruction or question; ``got``: the objects detected, or the answer. ``image``: drawn, or asked about; ``source``:
    the one that was edited. ``right``: by the detector, or the answer's last word against ``truth``. ``passes``:
    forwards that went through the decoder."""

    group: str
    text: str
    image: Image.Image
    got: str
    right: bool
    seconds: float
    forwards: int
    passes: int
    flops: int
    seed: int | None = None
    truth: str | None = None
    source: Image.Image | None = None


def prompts(n: int, seed: int, world: World = SCENES) -> list[tuple[Prompt, int]]:
    """About ``n`` prompts from the test side and a seed for each, as many of each category in turn, two seeds each."""

    def of(category: str, count: int) -> list[Prompt]:
        made = benchmark.prompts(category, -(-count // SEEDS_PER_PROMPT), seed, world=world)
        return [prompt for prompt in made for _ in range(SEEDS_PER_PROMPT)][:count]

    return [(prompt, seed + k) for k, prompt in enumerate(_in_turn(CATEGORIES, n, "images", of))]


def questions(n: int, seed: int, world: World = SCENES) -> list[tuple[Question, Image.Image]]:
    """About ``n`` questions, as many of each kind in turn, each about a rendered test scene of its own."""
    asked = _in_turn(QUESTION_KINDS, n, "questions", lambda kind, k: benchmark.questions(kind, k, seed, world=world))
    images = render([question.scene for question in asked])
    return [(question, Image.fromarray(image)) for question, image in zip(asked, images, strict=True)]


def edits(n: int, seed: int, world: World = SCENES) -> list[tuple[Edit, Image.Image, int]]:
    """About ``n`` edits, as many of each kind in turn, each of a rendered test scene of its own and with a seed."""
    asked = _in_turn(EDIT_KINDS, n, "edits", lambda kind, k: instructions.edits(kind, k, seed, world))
    images = render([edit.source for edit in asked])
    return [(e, Image.fromarray(x), seed + k) for k, (e, x) in enumerate(zip(asked, images, strict=True))]


def _in_turn(groups: tuple[str, ...], n: int, what: str, of: Callable[[str, int], list[T]]) -> list[T]:
    if n < len(groups):
        raise FlashUError(f"{n} {what} are too few: give at least {len(groups)}, one of each group")
    return list(chain(*zip(*(of(group, n // len(groups)) for group in groups), strict=True)))
