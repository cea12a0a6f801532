"""What all items share: the model, how much is measured, work already done, and a progress display."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from rich.progress import Progress

from flashu.errors import RecipeError
from flashu.evaluation import scenes_items as items
from flashu.evaluation.fidelity import Fidelity, fidelity, stacked
from flashu.evaluation.ledger import Ledger
from flashu.evaluation.machine import conditions
from flashu.evaluation.scenes_drawing import DPGSuite, GenEvalSuite
from flashu.evaluation.scenes_questions import QuestionSuite
from flashu.evaluation.score_table import ScoreTable
from flashu.evaluation.statistics import Spread
from flashu.evaluation.timing import clock_of, time_in_turns
from flashu.inference.calibrate import samples
from flashu.inference.calibrate.calibration import Calibration
from flashu.inference.engine import Engine
from flashu.models.weights import checkpoint_hash
from flashu.plan import TASKS, Task
from flashu.plan.presets import fitting
from flashu.plan.recipe import Recipe, exact
from flashu.studies.lab import inner

if TYPE_CHECKING:
    from flashu.studies.lab.cases import Case

COMPARED_IMAGES = 64
"""Images that fidelity is measured on."""
ANSWERS_PER_IMAGE = 4
"""Answers are short, so more of them are timed."""
Suite = GenEvalSuite | DPGSuite | QuestionSuite


@dataclass(frozen=True)
class Size:
    """How much is measured. ``prompts`` x ``images`` of each GenEval category, ``dense`` x ``images`` of DPG,
    ``questions`` per suite, ``repeats`` of each timing, ``seeds`` of every random choice, ``samples``: prompts
    and questions that statistics are gathered on, ``points``: settings per sweep, ``mask_steps``: Euler steps of the
    drawings that pruning masks are compared on (None: the model's)."""

    name: str
    prompts: int
    images: int
    dense: int
    questions: int
    repeats: int
    seeds: int
    samples: int
    points: int
    mask_steps: int | None = None
    batch: int = 48


REDUCED = Size("reduced", 16, 1, 64, 96, 5, 3, 12, 3, mask_steps=20)
FULL = Size("full", 100, 4, 150, 600, 25, 5, 48, 9)


@contextmanager
def shown(progress: Progress | None, text: str, total: int) -> Iterator[Callable[[int], None]]:
    """One task of the display, gone when left; yields what advances it."""
    if progress is None:
        yield lambda count: None
        return
    task = progress.add_task(text, total=total)
    try:
        yield lambda count: progress.advance(task, count)
    finally:
        progress.remove_task(task)


@dataclass(frozen=True, eq=False)
class Lab:
    """``engine`` brings the model; every item derives engines with other recipes from it."""

    engine: Engine
    size: Size = REDUCED
    ledger: Ledger = field(default_factory=Ledger)
    progress: Progress | None = None
    seed: int = 0
    timed: dict[Any, dict[str, Spread]] = field(default_factory=dict)
    """Timings already taken."""

    @cached_property
    def calibration(self) -> Calibration:
        """Both tasks' statistics: the checkpoint's own, else gathered now as a first request would."""
        base = Engine(self.engine.model, self.engine.processor, exact(), self.engine.calibration)
        known = base.calibration
        for task in TASKS:
            if known is None or task not in known.scores:
                known = base.calibrate(task)
        assert known is not None
        return known

    def engine_of(self, recipe: Recipe, calibration: Calibration | None = None) -> Engine:
        return Engine(self.engine.model, self.engine.processor, recipe, calibration or self.calibration)

    def fitted(self, recipe: Recipe) -> Recipe:
        """A recipe without the methods that the model has no structure for."""
        return fitting(recipe, self.engine.model.spec)

    def allows(self, recipe: Recipe) -> bool:
        """Whether the model has all that a recipe works on."""
        try:
            recipe.check(self.engine.model.spec)
        except RecipeError:
            return False
        return True

    @property
    def steps(self) -> int:
        """Euler steps of the model by default."""
        return self.engine.layout.defaults.steps

    # -- quality -----------------------------------------------------------------------------------------------
    @cached_property
    def geneval(self) -> GenEvalSuite:
        return GenEvalSuite.make(self.size.prompts, self.size.images, self.seed, items.asked_world(self.engine))

    @cached_property
    def dpg(self) -> DPGSuite:
        return DPGSuite.make(self.size.dense, self.size.images, self.seed, items.asked_world(self.engine))

    @cached_property
    def und(self) -> QuestionSuite:
        return QuestionSuite.make(self.size.questions, self.seed, items.asked_world(self.engine))

    def score(self, case: Case, suite: Suite, *, blind: bool = False) -> tuple[ScoreTable, list[items.Drawing]]:
        """Scores of what a case draws or answers, and what it drew; ``blind``: also asked about an empty board."""
        engine, batch = self.engine_of(case.recipe, case.calibration), self.size.batch
        if isinstance(suite, QuestionSuite):
            asked = suite.questions if blind else suite.questions[: len(suite.items)]
            with shown(self.progress, f"{case.label}: answers", len(asked)) as advance:
                answers = items.answer(engine, asked, batch=batch, ledger=self.ledger, on_batch=advance)
            return suite.score(answers), []
        texts, seeds, steps = suite.texts, suite.seeds, case.steps
        with shown(self.progress, f"{case.label}: images", len(texts)) as advance:
            drawn = items.draw(engine, texts, seeds, batch=batch, steps=steps, ledger=self.ledger, on_batch=advance)
        return suite.score([drawing.objects for drawing in drawn]), drawn

    def fidelity(self, drawn: Sequence[items.Drawing], baseline: Sequence[items.Drawing]) -> Fidelity | None:
        """Of the first images; None where their latents were too large to keep."""
        own, other = (stacked([d.latent for d in side[:COMPARED_IMAGES]]) for side in (drawn, baseline))
        if own is None or other is None:
            return None
        return fidelity(inner.pixels(self.engine, own), inner.pixels(self.engine, other), own, other)

    # -- time --------------------------------------------------------------------------------------------------
    def times(
        self, engines: Mapping[str, tuple[Engine, int | None]], task: Task, tokens: int | None = None
    ) -> dict[str, Spread]:
        """Seconds by name of one image (at so many steps, decoded) or one answer (of exactly ``tokens`` tokens if
        given), in turns after a warm-up. Taken once."""
        key = (task, tokens, tuple((name, engine.recipe, steps) for name, (engine, steps) in engines.items()))
        if key not in self.timed:
            calls = {name: self._call(engine, task, steps, tokens) for name, (engine, steps) in engines.items()}
            short = task == "understanding" and tokens is None
            rounds = self.size.repeats * (ANSWERS_PER_IMAGE if short else 1)
            clock = clock_of(self.engine.model.device)
            with shown(self.progress, f"timing {task}", (rounds + 1) * len(calls)) as advance:
                self.timed[key] = time_in_turns(calls, rounds, clock, on_call=lambda: advance(1))
        return self.timed[key]

    def _call(self, engine: Engine, task: Task, steps: int | None, tokens: int | None) -> Callable[[int], object]:
        if task == "generation":
            texts = self.dpg.texts
            return lambda n: engine.generate(texts[n % len(texts)], seed=n, steps=steps)
        asked = samples.questions(samples.SAMPLES, items.asked_world(self.engine))
        answer = inner.answering(engine, tokens)
        return lambda n: answer(*asked[n % len(asked)])

    def about(self, **more: Any) -> dict[str, Any]:
        """The conditions of a measurement."""
        known = {
            "model": self.engine.model.name,
            "model_hash": checkpoint_hash(self.engine.model),
            "size": self.size.name,
            "steps": self.steps,
            "guidance": self.engine.layout.defaults.guidance,
            "batch": self.size.batch,
            "seed": self.seed,
        }
        return known | more | {"machine": conditions(self.engine.model.device)}
