"""An embedded model's own score table: `python -m flashu.evaluation.scenes_report --model scenes`.

Held-out prompts in six categories, drawn by the exact recipe and read by the exact detector; held-out questions in six
kinds, balanced, with the blind prior beside them.
"""

from __future__ import annotations

import argparse
import platform
import sys
from pathlib import Path

import torch

from flashu.evaluation.files import atomic_write
from flashu.evaluation.scenes_items import answer, asked_world, draw, drawn_world
from flashu.evaluation.statistics import Rate, wilson
from flashu.inference.engine import Engine
from flashu.models.registry import open_model
from flashu.models.weights import checkpoint_hash
from flashu.scenes import benchmark
from flashu.scenes.benchmark import CATEGORIES, QUESTION_KINDS, blind_prior, judge
from flashu.scenes.questions import verdict
from flashu.scenes.world import WORLDS

Line = tuple[str, Rate, str]
"""A name, its score, and the blind prior where there is one."""


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


def table(title: str, lines: list[Line], n: int) -> list[str]:
    """Markdown rows, the mean last."""
    mean = sum(rate.value for _, rate, _ in lines) / len(lines)
    rows = [
        f"| {name} | {rate.value:.3f} | {rate.low:.2f} to {rate.high:.2f} | {prior} |" for name, rate, prior in lines
    ]
    head = [f"## {title}", "", f"| n = {n} each | score | 95 % interval | blind prior |", "|---|---|---|---|"]
    return [*head, *rows, f"| **mean** | **{mean:.3f}** | | |", ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=WORLDS, default="scenes")
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
    text = "\n".join(lines)
    atomic_write(options.output or Path("docs", f"{options.model}-scores.md"), text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
