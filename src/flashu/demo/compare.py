"""Runs the demo: every item under every recipe in turn, one item at a time, so that drift of the machine hits all."""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from flashu import __version__
from flashu.demo import original
from flashu.demo.result import Answered, Drawn, Result, Side
from flashu.demo.workload import Asking, Drawing, askings, drawings
from flashu.evaluation.scenes_items import drawn_world
from flashu.inference.calibrate import samples
from flashu.inference.engine import Answer, Engine, Generation
from flashu.models.showo2.original_engine import NAME, Original
from flashu.models.weights import checkpoint_hash
from flashu.plan.recipe import Recipe
from flashu.scenes.benchmark import CATEGORIES, QUESTION_KINDS, Question, blind_prior, judge
from flashu.scenes.detector import detect
from flashu.scenes.questions import verdict
from flashu.scenes.world import World

EXACT, CAREFUL, FAST = "exact", "quality", "paper"


log = logging.getLogger("flashu")
Item = TypeVar("Item")


class Bars(Protocol):
    """A progress display (rich's)."""

    def add_task(self, description: str, *, total: float | None = ...) -> Any: ...

    def advance(self, task_id: Any) -> None: ...


def compare(
    engine: Engine,
    *,
    images: int = 72,
    questions: int = 120,
    steps: int | None = None,
    seed: int = 0,
    seconds: float = 240,
    bars: Bars | None = None,
) -> Result:
    """Draw and answer the demo's items by the original program, under the exact recipe and under FlashU's.

    A machine too slow for all of them within ``seconds`` does fewer rounds of six (one at least); questions first.
    """
    began = time.perf_counter()
    world = drawn_world(engine)
    engines = contestants(engine)
    sides = [Side(e.recipe.name, e.recipe.to_dict()) for e in engines]
    to_draw, to_ask = drawings(images, seed, world), askings(questions, seed, world)
    ready = warm_up(engines, steps, world)

    half = (began + time.perf_counter() + seconds) / 2  # when the questions must leave the rest to the images
    for asking in in_time(to_ask, len(QUESTION_KINDS), half, "questions", bars):
        for j in turn(len(sides[-1].answered), len(engines)):
            sides[j].answered.append(answer(engines[j], asking))
    for drawing in in_time(to_draw, len(CATEGORIES), began + seconds, "images", bars):
        for j in turn(len(sides[-1].drawn), len(engines)):
            sides[j].drawn.append(draw(engines[j], drawing, steps, world))
    done, asked = len(sides[-1].drawn), len(sides[-1].answered)
    about = {
        **machine(engine.model.device),
        "model_hash": checkpoint_hash(engine.model),
        "dtype": str(engine.model.dtype).removeprefix("torch."),
        "steps": steps or engine.processor.defaults.steps,
        "guidance": engine.processor.defaults.guidance,
        "seed": seed,
        "images": done,
        "questions": asked,
        "blind_prior": priors([asking.question for asking in to_ask[:asked]]),
        "token_pruning": token_pruning(engines[-1]),
        "ready_seconds": ready,
        "seconds": time.perf_counter() - began,
        "command": command(done, asked, steps, seed),
    }
    return Result(sides, NAME, about)


def in_time(items: Sequence[Item], round_: int, deadline: float, what: str, bars: Bars | None) -> Iterator[Item]:
    """The items in rounds of ``round_``; no round begins that would, at the pace so far, end after the deadline."""
    began = time.perf_counter()
    bar = None if bars is None else bars.add_task(what, total=len(items))
    for k, item in enumerate(items):
        now = time.perf_counter()
        if k and k % round_ == 0 and now + (now - began) / k * round_ > deadline:
            log.warning("out of time after %d of %d %s", k, len(items), what)
            return
        yield item
        if bars is not None:
            bars.advance(bar)


def contestants(engine: Engine) -> list[Engine]:
    """Engines over the same weights: the original program, the exact recipe, FlashU held back and as published."""
    first = Original(engine.model, engine.processor, Recipe(name=NAME))
    return [first, *(engine.with_recipe(recipe) for recipe in (EXACT, CAREFUL, FAST))]


def turn(k: int, n: int) -> list[int]:
    """Who goes when on item ``k``: the first place is passed round."""
    return [(k + j) % n for j in range(n)]


def warm_up(engines: list[Engine], steps: int | None, world: World) -> dict[str, float]:
    """One image and one answer each, not counted; seconds it took, calibration included where a recipe needs it."""
    took = {}
    picture, question = samples.questions(1, world)[0]
    for engine in engines:
        began = time.perf_counter()
        engine.generate(samples.PROMPT, seed=0, steps=steps)
        engine.answer(picture, question)
        took[engine.recipe.name] = time.perf_counter() - began
    return took


def draw(engine: Engine, drawing: Drawing, steps: int | None, world: World) -> Drawn:
    prompt = drawing.prompt
    began = time.perf_counter()
    made = engine.generate(prompt.text, seed=drawing.seed, steps=steps)
    seconds = time.perf_counter() - began
    found = detect(made.images, world)[0]
    flops = original.drawing_flops if isinstance(engine, Original) else drawing_flops
    return Drawn(
        prompt.category,
        prompt.text,
        drawing.seed,
        made.images[0],
        judge(prompt, found),
        ", ".join(f"{o.colour} {o.shape} {o.cell}" for o in found) or "nothing",
        seconds,
        len(made.trace),
        sum(record.rows > 0 for record in made.trace),
        flops(engine, made, prompt.text, steps),
    )


def answer(engine: Engine, asking: Asking) -> Answered:
    question = asking.question
    began = time.perf_counter()
    given = engine.answer(asking.image, question.text)
    seconds = time.perf_counter() - began
    flops = original.answer_flops if isinstance(engine, Original) else answer_flops
    said = verdict(given.text) or ""
    return Answered(
        question.kind,
        question.text,
        question.verdict,
        asking.image,
        given.text,
        said,
        said == question.verdict,
        seconds,
        len(given.trace),
        flops(engine, given, question.text),
    )


def drawing_flops(engine: Engine, made: Generation, prompt: str, steps: int | None) -> int:
    ids = engine.processor.text.prompt(prompt)
    return engine.explain("generation", steps=steps, prompt_tokens=len(ids)).totals.flops


def answer_flops(engine: Engine, given: Answer, question: str) -> int:
    before, after = engine.processor.text.question(question)
    plan = engine.explain("understanding", question_tokens=len(before) + len(after))
    return sum(f.flops for f in plan.forwards[: len(given.trace)])


def priors(asked: list[Question]) -> dict[str, float]:
    """By kind, the share of questions its commonest answer gets right."""
    kinds = dict.fromkeys(q.kind for q in asked)
    return {kind: blind_prior([q for q in asked if q.kind == kind]) for kind in kinds}


def token_pruning(engine: Engine) -> list[dict[str, Any]]:
    """Which tokens are pruned, and whether this model's attention agrees with that choice."""
    known = engine.calibration
    if known is None or known.correlation is None:
        return []
    return [
        {
            "layer": m.layer,
            "side": m.side,
            "correlation": float(known.correlation[m.layer - 1]),
            "fits": known.side(m.layer) == m.side,
        }
        for m in engine.recipe.token_prunes()
    ]


def machine(device: torch.device) -> dict[str, Any]:
    """Hardware and versions."""
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    return {
        "hardware": where,
        "device": str(device),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "flashu": __version__,
    }


def cpu_name() -> str:
    """The processor's own name where the system tells it, else its architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def command(images: int, questions: int, steps: int | None, seed: int) -> str:
    options = f"--images {images} --questions {questions} --seed {seed}"
    return f"flashu demo {options}" + ("" if steps is None else f" --steps {steps}")
