"""What the demo draws and asks: prompts of every category and questions of every kind, from the test side."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

from PIL import Image

from flashu.errors import FlashUError
from flashu.scenes import benchmark
from flashu.scenes.benchmark import CATEGORIES, QUESTION_KINDS, Prompt, Question
from flashu.scenes.world import SCENES, World, render

SEEDS_PER_PROMPT = 2


@dataclass(frozen=True)
class Drawing:
    prompt: Prompt
    seed: int


@dataclass(frozen=True)
class Asking:
    question: Question
    image: Image.Image


def drawings(n: int, seed: int, world: World = SCENES) -> list[Drawing]:
    """About ``n`` images, as many of each category in turn: test prompts, two seeds each."""
    each = _each(n, len(CATEGORIES), "images")
    groups = []
    for category in CATEGORIES:
        prompts = benchmark.prompts(category, -(-each // SEEDS_PER_PROMPT), seed, world=world)
        groups.append([prompt for prompt in prompts for _ in range(SEEDS_PER_PROMPT)][:each])
    return [Drawing(prompt, seed + k) for k, prompt in enumerate(chain(*zip(*groups, strict=True)))]


def askings(n: int, seed: int, world: World = SCENES) -> list[Asking]:
    """About ``n`` questions, as many of each kind in turn, each about a rendered test scene of its own."""
    each = _each(n, len(QUESTION_KINDS), "questions")
    groups = [benchmark.questions(kind, each, seed, world=world) for kind in QUESTION_KINDS]
    asked = list(chain(*zip(*groups, strict=True)))
    pictures = render([q.scene for q in asked])
    return [Asking(q, Image.fromarray(picture)) for q, picture in zip(asked, pictures, strict=True)]


def _each(n: int, groups: int, what: str) -> int:
    if n < groups:
        raise FlashUError(f"{n} {what} are too few: give at least {groups}, one of each group")
    return n // groups
