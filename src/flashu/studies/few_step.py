"""What a few-step adapter keeps: its drawings and edits of held-out scenes, paired with the guided teacher's.

    python -m flashu.studies.few_step MODEL ADAPTER --prompts 100 --edits 60 --sheet sheet.png

Beside it stand two ways to draw as quickly without training: the teacher cut to as many forwards of rows, and the
teacher unguided in as many steps.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from flashu.errors import FlashUError
from flashu.evaluation.scenes_drawing import DPGSuite, GenEvalSuite
from flashu.evaluation.scenes_edits import EditSuite
from flashu.evaluation.score_table import ScoreTable
from flashu.evaluation.statistics import Difference
from flashu.inference.engine import Engine
from flashu.inference.results import Generation
from flashu.models.registry import open_model
from flashu.scenes.detector import detect
from flashu.scenes.world import World, render, world_of

BATCH = 60
TEACHER = "teacher"


@dataclass(frozen=True, eq=False)
class Arm:
    """A way to draw: an engine, and what its drawings and edits are asked with."""

    engine: Engine
    drawing: Mapping[str, Any]
    editing: Mapping[str, Any]


@dataclass(frozen=True)
class Result:
    """An arm on a benchmark: rows that went through the model for one picture (``nfe``), its score, and the difference
    from the teacher's on the same items (None: the teacher)."""

    benchmark: str
    arm: str
    nfe: float
    table: ScoreTable
    loss: Difference | None

    def __str__(self) -> str:
        score = self.table.overall
        against = "" if self.loss is None else f"  {self.loss}"
        return f"{self.benchmark:18s} {self.arm:12s} {self.nfe:5.1f} rows  {score} n = {score.n}{against}"


def arms(engine: Engine, adapter: str) -> dict[str, Arm]:
    """The teacher first; the branches that guide it are those of its own defaults."""
    student = engine.with_recipe(adapter=adapter) if Path(adapter).is_dir() else engine.with_recipe(adapter)
    if student.adapter is None:
        raise FlashUError(f"{adapter} is neither a folder nor an adapter that comes with the model")
    points = student.adapter.facts.steps
    plain = {"steps": points}
    draw, edit = (max(1, points // rows) for rows in (2, 1 + len(engine.model.spec.branches)))
    return {
        TEACHER: Arm(engine, {}, {}),
        "student": Arm(student, {}, {}),
        "cut": Arm(engine, {"steps": draw}, {"steps": edit}),
        "unguided": Arm(engine, plain | {"guidance": 1.0}, plain | {"text_guidance": 1.0}),
    }


def compare(
    engine: Engine,
    adapter: str,
    prompts: int,
    edits: int,
    seed: int = 0,
    on_result: Callable[[Result], None] = lambda result: None,
) -> list[Result]:
    """``prompts``: of each of the six categories, three times as many dense ones; ``edits``: of each kind.
    ``on_result``: called with each result when it is there."""
    world = world_of(engine.layout.defaults.height, engine.layout.defaults.width)
    assert world is not None
    suites: dict[str, Any] = {}
    if prompts:
        suites["scenes-geneval"] = GenEvalSuite.make(prompts, 1, seed, world)
        suites["scenes-dpg"] = DPGSuite.make(3 * prompts, 1, seed, world)
    if edits:
        suites["scenes-edit"] = EditSuite.make(edits, seed, world=world)
        suites["scenes-edit-hard"] = EditSuite.make(edits, seed, hard=True, world=world)
    found: list[Result] = []
    for benchmark, suite in suites.items():
        teacher: ScoreTable | None = None
        for name, arm in arms(engine, adapter).items():
            made = _made(arm, suite)
            table = suite.score(detect(made.images, world))
            rows = [sum(trace.rows for trace in traces) for traces in made.traces]
            loss = None if teacher is None else table.against(teacher)
            teacher = teacher or table
            found.append(Result(benchmark, name, sum(rows) / len(rows), table, loss))
            on_result(found[-1])
    return found


def _made(arm: Arm, suite: Any) -> Generation:
    if not isinstance(suite, EditSuite):
        return arm.engine.generate(suite.texts, seed=suite.seeds, batch_size=BATCH, **arm.drawing)
    pictures = [Image.fromarray(image) for image in render(suite.sources)]
    return arm.engine.edit(pictures, suite.texts, seed=suite.seeds, batch_size=BATCH, **arm.editing)


def sheet(engine: Engine, adapter: str, world: World, columns: int = 12) -> Image.Image:
    """A row of drawings and a row of edits of each arm, the pictures that are edited above them."""
    drawn, changed = DPGSuite.make(columns, 1, 1, world), EditSuite.make(-(-columns // 5), 1, world=world)
    changed = EditSuite(changed.edits[:columns], changed.seed, changed.kinds)
    lines = [_made(arm, drawn).images for arm in arms(engine, adapter).values()]
    lines += [[Image.fromarray(image) for image in render(changed.sources)]]
    lines += [_made(arm, changed).images for arm in arms(engine, adapter).values()]
    step = world.size + 4
    board = Image.new("RGB", (columns * step, len(lines) * step), "white")
    for y, line in enumerate(lines):
        for x, picture in enumerate(line):
            board.paste(picture, (x * step, y * step))
    return board


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="An embedded model, or a folder of one of a procedural world.")
    parser.add_argument("adapter", help="Folder of an adapter, or the name of one that comes with the model.")
    parser.add_argument("--prompts", type=int, default=100, help="Of each category; three times as many dense ones.")
    parser.add_argument("--edits", type=int, default=60, help="Of each kind.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheet", help="A picture of some results.")
    given = parser.parse_args()
    model = open_model(given.model, dtype=torch.float32)
    engine = Engine(model, model.processor)
    compare(engine, given.adapter, given.prompts, given.edits, given.seed, lambda result: print(result, flush=True))
    if given.sheet:
        world = world_of(engine.layout.defaults.height, engine.layout.defaults.width)
        assert world is not None
        sheet(engine, given.adapter, world).save(given.sheet)


if __name__ == "__main__":
    main()
