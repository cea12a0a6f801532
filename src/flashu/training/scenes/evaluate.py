"""A small score of a model in training: its checkpoint folder, opened and run as any other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from flashu.inference.engine import Engine
from flashu.models.registry import open_model
from flashu.scenes import benchmark, edits, questions
from flashu.scenes.detector import detect
from flashu.scenes.questions import verdict
from flashu.scenes.sampler import held_scene
from flashu.scenes.world import World, render

STEPS = 20  # of a model that draws by flow


def score(folder: Path, tasks: Sequence[str], world: World, n: int, seed: int = 0) -> dict[str, float]:
    """n test items of each category and kind -> share right, with the means of the tasks."""
    model = open_model(folder, dtype=torch.float32)
    return score_engine(Engine(model, model.processor), tasks, world, n, seed)


def score_engine(engine: Engine, tasks: Sequence[str], world: World, n: int, seed: int = 0) -> dict[str, float]:
    """The same of an engine."""
    steps = STEPS if engine.model.spec.drawing == "flow" else None
    table: dict[str, float] = {}

    def add(mean: str, groups: dict[str, list[bool]]) -> None:
        table.update({name: float(np.mean(right)) for name, right in groups.items()})
        table[mean] = float(np.mean([table[name] for name in groups]))

    if "draw" in tasks:
        prompts = [p for c in benchmark.CATEGORIES for p in benchmark.prompts(c, n, seed, world=world)]
        drawn = engine.generate([p.text for p in prompts], seed=list(range(len(prompts))), steps=steps)
        right = [benchmark.judge(p, f) for p, f in zip(prompts, detect(drawn.images, world), strict=True)]
        add("generation", dict(zip(benchmark.CATEGORIES, _parts(right, n), strict=True)))
    if "answer" in tasks:
        asked = [q for k in benchmark.QUESTION_KINDS for q in benchmark.questions(k, n, seed, world=world)]
        answers = engine.answer(pictures([q.scene for q in asked]), [q.text for q in asked])
        right = [verdict(a.text) == q.verdict for a, q in zip(answers, asked, strict=True)]
        names = ["ask " + k for k in benchmark.QUESTION_KINDS]
        add("understanding", dict(zip(names, _parts(right, n), strict=True)))
    if "edit" in tasks:
        wanted = [e for k in (*edits.EDIT_KINDS, *edits.HARD_KINDS) for e in edits.edits(k, n, seed, world)]
        made = engine.edit(
            pictures([e.source for e in wanted]), [e.text for e in wanted], seed=list(range(len(wanted))), steps=steps
        )
        right = [edits.judge(e, f).right for e, f in zip(wanted, detect(made.images, world), strict=True)]
        parts, easy = _parts(right, n), len(edits.EDIT_KINDS)
        add("editing", dict(zip(edits.EDIT_KINDS, parts[:easy], strict=True)))
        add("hard editing", dict(zip(["hard " + k for k in edits.HARD_KINDS], parts[easy:], strict=True)))
        rng = np.random.default_rng((seed, 400))
        scenes = [held_scene(rng, world) for _ in range(n)]
        described = [questions.describe_cells(scene) for scene in scenes]
        said = engine.answer(pictures(scenes), [q for q, _ in described])
        table["descriptions"] = float(np.mean([s.text == a for s, (_, a) in zip(said, described, strict=True)]))
    return table


def pictures(scenes: Sequence) -> list[Image.Image]:
    return [Image.fromarray(image) for image in render(scenes)]


def _parts(right: list[bool], n: int) -> list[list[bool]]:
    return [right[i : i + n] for i in range(0, len(right), n)]
