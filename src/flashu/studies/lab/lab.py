"""What a run of the lab shares: the model, how much to measure, finished work, and a progress display."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import quantiles
from typing import Any, Protocol

import torch

from flashu.bench.machine import conditions
from flashu.evaluation import scenes_items
from flashu.evaluation.fidelity import Fidelity, fidelity, stacked
from flashu.evaluation.ledger import Ledger
from flashu.evaluation.scenes_drawing import DPGSuite, GenEvalSuite
from flashu.evaluation.scenes_questions import QuestionSuite
from flashu.evaluation.score_table import ScoreTable
from flashu.inference.calibrate import samples
from flashu.inference.calibrate.calibration import Calibration
from flashu.inference.engine import Engine
from flashu.models.showo2.original_engine import NAME, Original
from flashu.models.showo2.processor import Processor
from flashu.models.weights import checkpoint_hash
from flashu.plan import TASKS, Task
from flashu.plan.recipe import Recipe, exact
from flashu.scenes.world import World

COMPARED_IMAGES = 64
"""Images that fidelity is measured on."""
ANSWERS_PER_IMAGE = 4
"""Answers are short, so more of them are timed."""
LONG = 64
"""Tokens of the longer answers that are timed beside the suites' own."""


@dataclass(frozen=True)
class Size:
    """How much is measured. ``prompts`` x ``images`` of each GenEval category, ``dense`` x ``images`` of DPG,
    ``questions`` per suite, ``repeats`` of each timing, ``arms``: seeds of every random arm, ``samples``: prompts and
    questions that statistics are gathered on, ``points``: settings per sweep, ``mask_steps``: Euler steps of the
    drawings that pruning masks are compared on (None: the model's)."""

    name: str
    prompts: int
    images: int
    dense: int
    questions: int
    repeats: int
    arms: int
    samples: int
    points: int
    mask_steps: int | None = None
    batch: int = 48


REDUCED = Size("reduced", 16, 1, 64, 96, 5, 3, 12, 3, mask_steps=20)
FULL = Size("full", 100, 4, 150, 600, 25, 5, 48, 9)


class Bars(Protocol):
    """A progress display (rich's)."""

    def add_task(self, description: str, *, total: float | None = ...) -> Any: ...
    def advance(self, task_id: Any, advance: float = ...) -> None: ...
    def remove_task(self, task_id: Any) -> None: ...


@dataclass(frozen=True)
class Timing:
    """Seconds of one request alone, turn by turn: median and quartiles."""

    turns: tuple[float, ...]
    seconds: float
    low: float
    high: float

    def speedup(self, baseline: Timing) -> Timing:
        """How many times faster than ``baseline``, each turn against its own: a busy moment slows both."""
        return timing([base / own for base, own in zip(baseline.turns, self.turns, strict=True)])

    def __str__(self) -> str:
        """As a ratio."""
        return f"{self.seconds:.2f}x [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class Pace:
    """What a contender takes, and in the same turns the first contender and the original program."""

    own: Timing
    first: Timing
    original: Timing

    @property
    def faster(self) -> Timing:
        """Times faster than the first contender."""
        return self.own.speedup(self.first)

    @property
    def over_original(self) -> Timing:
        return self.own.speedup(self.original)


Suite = GenEvalSuite | DPGSuite


@dataclass(frozen=True, eq=False)
class Lab:
    """``engine`` brings the model; every item derives engines with other recipes from it. ``model``: how it is
    called."""

    engine: Engine
    size: Size = REDUCED
    ledger: Ledger = field(default_factory=Ledger)
    bars: Bars | None = None
    model: str = "scenes"
    seed: int = 0
    clocked: dict[Any, dict[str, Timing]] = field(default_factory=dict)
    """Timings already taken."""

    # -- engines -----------------------------------------------------------------------------------------------
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

    # -- quality -----------------------------------------------------------------------------------------------
    @property
    def world(self) -> World:
        return scenes_items.asked_world(self.engine)

    @cached_property
    def geneval(self) -> GenEvalSuite:
        return GenEvalSuite.make(self.size.prompts, self.size.images, self.seed, self.world)

    @cached_property
    def dpg(self) -> DPGSuite:
        return DPGSuite.make(self.size.dense, self.size.images, self.seed, self.world)

    @cached_property
    def und(self) -> QuestionSuite:
        return QuestionSuite.make(self.size.questions, self.seed, self.world)

    def draw(
        self, recipe: Recipe, suite: Suite, *, steps: int | None = None, calibration: Calibration | None = None
    ) -> list[scenes_items.Drawing]:
        engine = self.engine_of(recipe, calibration)
        with self._bar(f"{recipe.name}: images", len(suite.texts)) as tick:
            return scenes_items.draw(
                engine, suite.texts, suite.seeds, batch=self.size.batch, steps=steps, ledger=self.ledger, on_batch=tick
            )

    def score(
        self, recipe: Recipe, suite: Suite, *, steps: int | None = None, calibration: Calibration | None = None
    ) -> ScoreTable:
        """Marks of what a recipe draws."""
        return suite.score([d.objects for d in self.draw(recipe, suite, steps=steps, calibration=calibration)])

    def ask(self, recipe: Recipe, calibration: Calibration | None = None, *, blind: bool = False) -> ScoreTable:
        """Marks of what a recipe answers; ``blind``: also about an empty board."""
        engine = self.engine_of(recipe, calibration)
        shown = self.und.questions if blind else self.und.questions[: len(self.und.items)]
        with self._bar(f"{recipe.name}: answers", len(shown)) as tick:
            return self.und.score(
                scenes_items.answer(engine, shown, batch=self.size.batch, ledger=self.ledger, on_batch=tick)
            )

    def fidelity(
        self, drawn: Sequence[scenes_items.Drawing], vanilla: Sequence[scenes_items.Drawing]
    ) -> Fidelity | None:
        """Of the first images; None where their latents were too large to keep."""
        mine, theirs = (stacked([d.latent for d in side[:COMPARED_IMAGES]]) for side in (drawn, vanilla))
        vae = self.engine.processor.vae
        if mine is None or theirs is None or vae is None:
            return None
        with torch.inference_mode():
            pictures = [(vae.decode(z.to(self.engine.model.device)).cpu() + 1) / 2 for z in (mine, theirs)]
        return fidelity(pictures[0], pictures[1], mine, theirs)

    # -- time --------------------------------------------------------------------------------------------------
    def paces(
        self, engines: Mapping[str, tuple[Engine, int | None]], task: Task, tokens: int | None = None
    ) -> list[Pace]:
        """`times` in order, each beside the first one's and those of the original program."""
        original = Original(self.engine.model, self.engine.processor)
        times = self.times({**engines, NAME: (original, None)}, task, tokens)
        first = times[next(iter(engines))]
        return [Pace(times[name], first, times[NAME]) for name in engines]

    def times(
        self, engines: Mapping[str, tuple[Engine, int | None]], task: Task, tokens: int | None = None
    ) -> dict[str, Timing]:
        """Latency by name of one image (at so many steps, decoded) or one answer (of exactly ``tokens`` tokens if
        given); taken in turns after a warm-up, so that a drift of the machine meets all alike. Taken once."""
        key = (task, tokens, tuple((name, engine.recipe, steps) for name, (engine, steps) in engines.items()))
        if key in self.clocked:
            return self.clocked[key]
        calls = {name: self._call(engine, task, steps, tokens) for name, (engine, steps) in engines.items()}
        took: dict[str, list[float]] = {name: [] for name in calls}
        short = task == "understanding" and tokens is None
        turns = self.size.repeats * (ANSWERS_PER_IMAGE if short else 1)
        with self._bar(f"timing {task}", (turns + 1) * len(calls)) as tick:
            for turn in range(turns + 1):
                for name, call in calls.items():
                    synchronize(self.engine.model.device)
                    began = time.perf_counter()
                    call(max(turn - 1, 0))
                    synchronize(self.engine.model.device)
                    if turn:
                        took[name].append(time.perf_counter() - began)
                    tick(1)
        self.clocked[key] = {name: timing(seconds) for name, seconds in took.items()}
        return self.clocked[key]

    def _call(self, engine: Engine, task: Task, steps: int | None, tokens: int | None) -> Callable[[int], object]:
        if task == "generation":
            texts = self.dpg.texts
            return lambda turn: engine.generate(texts[turn % len(texts)], seed=turn, steps=steps)
        asked = samples.questions(samples.SAMPLES, self.world)
        if tokens is not None:
            engine = engine.of(engine.model, endless(engine.processor), engine.fitted)
        return lambda turn: engine.answer(*asked[turn % len(asked)], max_new_tokens=tokens)

    # -- around ------------------------------------------------------------------------------------------------
    def about(self, **more: Any) -> dict[str, Any]:
        """The conditions of a measurement."""
        defaults = self.engine.processor.defaults
        return (
            {
                "model": self.model,
                "model_hash": checkpoint_hash(self.engine.model),
                "size": self.size.name,
                "steps": defaults.steps,
                "guidance": defaults.guidance,
                "batch": self.size.batch,
                "seed": self.seed,
            }
            | more
            | {"machine": conditions(self.engine.model.device)}
        )

    def _bar(self, text: str, total: int) -> _Bar:
        return _Bar(self.bars, text, total)


class _Bar:
    """One task of the display, gone when left."""

    def __init__(self, bars: Bars | None, text: str, total: int) -> None:
        self.bars, self.text, self.total = bars, text, total

    def __enter__(self) -> Callable[[int], None]:
        if self.bars is None:
            return lambda count: None
        bars, self.task = self.bars, self.bars.add_task(self.text, total=self.total)
        return lambda count: bars.advance(self.task, count)

    def __exit__(self, *_: object) -> None:
        if self.bars is not None:
            self.bars.remove_task(self.task)


def endless(processor: Processor) -> Processor:
    """The processor with no token that ends an answer, for answers of a length that is asked for."""
    return replace(processor, text=replace(processor.text, ids=replace(processor.text.ids, eos=-1)))


def timing(turns: Sequence[float]) -> Timing:
    """Median and quartiles of seconds, or of ratios of them."""
    low, middle, high = quantiles(turns, n=4, method="inclusive") if len(turns) > 1 else (turns[0],) * 3
    return Timing(tuple(turns), middle, low, high)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
