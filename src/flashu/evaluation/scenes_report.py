"""An embedded model's own score table: `python -m flashu.evaluation.scenes_report --model scenes`.

Held-out prompts in six categories, drawn by the exact recipe and read by the exact detector; held-out questions in six
kinds, balanced, with the blind prior beside them; of a model that edits, also descriptions of every cell and edits.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from flashu.evaluation.files import atomic_write
from flashu.evaluation.scenes_edits import ASKED, KEPT, EditSuite
from flashu.evaluation.scenes_items import answer, asked_world, change, draw, drawn_world
from flashu.evaluation.statistics import Rate, wilson
from flashu.inference.engine import Engine
from flashu.models.registry import open_model
from flashu.models.weights import checkpoint_hash
from flashu.scenes import benchmark
from flashu.scenes.benchmark import CATEGORIES, QUESTION_KINDS, blind_prior, judge
from flashu.scenes.questions import describe_cells, verdict
from flashu.scenes.sampler import held_scene

Line = tuple[str, Rate, str]
"""A name, its score, and what it is compared with, where there is something."""


def generation(engine: Engine, n: int, seed: int) -> list[Line]:
    """``n`` prompts of each category, one image each."""
    lines = []
    for category in CATEGORIES:
        prompts = benchmark.prompts(category, n, seed, world=drawn_world(engine))
        drawings = draw(engine, [p.text for p in prompts], [seed + k for k in range(n)])
        right = sum(judge(p, d.objects) for p, d in zip(prompts, drawings, strict=True))
        lines.append((category, wilson(right, n), ""))
    return lines


def understanding(engine: Engine, n: int, seed: int) -> list[Line]:
    """``n`` questions of each kind, each about a scene of its own."""
    lines = []
    for kind in QUESTION_KINDS:
        questions = benchmark.questions(kind, n, seed, world=asked_world(engine))
        answers = answer(engine, [(q.text, q.scene) for q in questions])
        right = sum(verdict(text) == q.verdict for text, q in zip(answers, questions, strict=True))
        lines.append((kind, wilson(right, n), f"{blind_prior(questions):.2f}"))
    return lines


def editing(engine: Engine, n: int, seed: int, hard: bool) -> tuple[list[Line], list[Line]]:
    """``n`` edits of each kind beside a copied picture; and over all of them, the change and the rest apart."""
    suite = EditSuite.make(n, seed, hard, drawn_world(engine))
    made = suite.score([d.objects for d in change(engine, suite.sources, suite.texts, suite.seeds)])
    copied = suite.copied()

    def line(label: str, column: str) -> Line:
        right, count = sum(item.value for item in made.columns[column]), len(made.columns[column])
        return (label, wilson(round(right), count), f"{copied.scores()[column].value:.2f}")

    parts = [line("of all: the change is there", ASKED), line("of all: the rest is kept", KEPT)]
    return [line(kind, kind) for kind in suite.kinds], parts


def describing(engine: Engine, n: int, seed: int) -> list[Line]:
    """``n`` held-out scenes of two to four objects, each described exactly or not."""
    rng = np.random.default_rng((seed, 500))
    scenes = [held_scene(rng, asked_world(engine)) for _ in range(n)]
    asked = [describe_cells(scene) for scene in scenes]
    said = answer(engine, [(question, scene) for (question, _), scene in zip(asked, scenes, strict=True)])
    right = sum(text == wanted for text, (_, wanted) in zip(said, asked, strict=True))
    return [("every cell", wilson(right, n), "")]


def table(title: str, lines: list[Line], n: int, beside: str = "blind prior", parts: Sequence[Line] = ()) -> list[str]:
    """Markdown rows, the mean behind them, then ``parts`` that are not in it."""
    mean = sum(rate.value for _, rate, _ in lines) / len(lines)

    def rows(of: Sequence[Line]) -> list[str]:
        return [f"| {name} | {r.value:.3f} | {r.low:.2f} to {r.high:.2f} | {other} |" for name, r, other in of]

    head = [f"## {title}", "", f"| n = {n} each | score | 95 % interval | {beside} |", "|---|---|---|---|"]
    return [*head, *rows(lines), f"| **mean** | **{mean:.3f}** | | |", *rows(parts), ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="scenes", help="an embedded model, or a checkpoint folder")
    parser.add_argument("-n", type=int, default=100, help="prompts of each category, questions of each kind")
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("-o", "--output", type=Path, help="default docs/MODEL-scores.md")
    options = parser.parse_args()
    model = open_model(options.model)
    engine = Engine(model, model.processor)
    defaults = engine.layout.defaults
    command = f"python -m flashu.evaluation.scenes_report --model {options.model} -n {options.n} --seed {options.seed}"
    lines = [
        f"# Scores of {options.model}",
        "",
        f"Written by `{command}`: weights {checkpoint_hash(engine.model)}, {defaults.steps} forwards, guidance "
        f"{defaults.guidance:g}, {engine.model.dtype}, torch {torch.__version__}, {platform.machine()}. Prompts, "
        "scenes and seeds are held out.",
        "",
        *table("Drawing", generation(engine, options.n, options.seed), options.n),
        *table("Answering", understanding(engine, options.n, options.seed), options.n),
    ]
    if engine.layout.edits:
        lines += table("Describing", describing(engine, options.n, options.seed), options.n)
        for title, hard in (("Editing", False), ("Editing, harder", True)):
            kinds, parts = editing(engine, options.n, options.seed, hard)
            lines += table(title, kinds, options.n, "the picture copied", parts)
    text = "\n".join(lines)
    atomic_write(options.output or Path("docs", f"{options.model}-scores.md"), text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
