"""Runs the demo: every item under every recipe in turn, one item at a time, so that drift of the machine hits all."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from PIL import Image
from rich.progress import Progress

from flashu.demo import items
from flashu.demo.items import Item
from flashu.demo.result import RecipeResult, Result, grouped
from flashu.evaluation.machine import conditions
from flashu.evaluation.scenes_items import drawn_world
from flashu.evaluation.timing import WallClock, timed
from flashu.inference.actions import AnswerRequest, Append
from flashu.inference.calibrate import samples
from flashu.inference.engine import Engine
from flashu.models.registry import family
from flashu.models.weights import checkpoint_hash
from flashu.scenes.benchmark import CATEGORIES, QUESTION_KINDS, Prompt, Question, blind_prior, judge
from flashu.scenes.detector import detect
from flashu.scenes.edits import EDIT_KINDS, Edit
from flashu.scenes.edits import judge as edits_judge
from flashu.scenes.questions import verdict
from flashu.scenes.world import World

RECIPES = ("exact", "quality", "paper")
"""Beside the original program; the last is the one the demo is about."""

log = logging.getLogger("flashu")
T = TypeVar("T")


def compare(
    engine: Engine,
    *,
    images: int = 48,
    questions: int = 60,
    edits: int = 40,
    steps: int | None = None,
    seed: int = 0,
    seconds: float = 240,
    bars: Progress | None = None,
) -> Result:
    """Draw and answer the demo's items, and edit where the model can, by the original program, under the exact recipe
    and under FlashU's.

    A machine too slow for all of them within ``seconds`` does fewer rounds (one at least of each kind); questions
    first.
    """
    began = time.perf_counter()
    world, model = drawn_world(engine), engine.model
    original = family(model.spec.family).reference(model, engine.processor)
    engines = [original, *map(engine.with_recipe, RECIPES)]
    results = [RecipeResult(own.recipe.name, own.recipe.to_dict()) for own in engines]
    cases = list(zip(engines, results, strict=True))
    prompts, asked = items.prompts(images, seed, world), items.questions(questions, seed, world)
    ready = {result.name: warm_up(own, steps, world) for own, result in cases}

    changes = items.edits(edits, seed, world) if engine.layout.edits else []
    parts = 3 if changes else 2
    start = time.perf_counter()
    left = began + seconds - start
    ends = [start + left * (n + 1) / parts for n in range(parts)]  # when each must leave the rest to the others
    for k, (question, image) in enumerate(in_time(asked, len(QUESTION_KINDS), ends[0], "questions", bars)):
        tokens = question_tokens(engine, question, image)
        for own, result in rotated(cases, k):
            result.answered.append(answer(own, question, image, tokens))
    for k, (change, source, of_edit) in enumerate(in_time(changes, len(EDIT_KINDS), ends[-2], "edits", bars)):
        for own, result in rotated(cases, k):
            result.edited.append(edit(own, change, source, of_edit, steps, world))
    for k, (prompt, of_image) in enumerate(in_time(prompts, len(CATEGORIES), ends[-1], "images", bars)):
        for own, result in rotated(cases, k):
            result.drawn.append(draw(own, prompt, of_image, steps, world))
    drawn, answered = len(results[-1].drawn), len(results[-1].answered)
    machine, defaults = conditions(model.device), engine.layout.defaults
    by_kind = grouped((question for question, _ in asked[:answered]), lambda question: question.kind)
    about = {
        "model": model.name or model.spec.family,
        "family": model.spec.family,
        "hardware": machine["device"],
        "device": str(model.device),
        **{name: machine[name] for name in ("cores", "threads", "system", "python", "torch", "flashu")},
        "model_hash": checkpoint_hash(model),
        "dtype": str(model.dtype).removeprefix("torch."),
        "steps": steps or defaults.steps,
        "guidance": defaults.guidance,
        "seed": seed,
        "images": drawn,
        "questions": answered,
        "edits": len(results[-1].edited),
        "blind_prior": {kind: blind_prior(group) for kind, group in by_kind.items()},
        "token_pruning": token_pruning(engines[-1]),
        "ready_seconds": ready,
        "seconds": time.perf_counter() - began,
        "command": f"flashu demo --model {model.name} --images {drawn} --questions {answered} --seed {seed}"
        + (f" --edits {len(results[-1].edited)}" if changes else "")
        + ("" if steps is None else f" --steps {steps}"),
    }
    return Result(results, about)


def in_time(things: Sequence[T], group: int, deadline: float, what: str, bars: Progress | None) -> Iterator[T]:
    """The things in groups of ``group``; none begins that would, at the pace so far, end after the deadline."""
    began = time.perf_counter()
    bar = None if bars is None else bars.add_task(what, total=len(things))
    for k, thing in enumerate(things):
        now = time.perf_counter()
        if k and k % group == 0 and now + (now - began) / k * group > deadline:
            log.warning("out of time after %d of %d %s", k, len(things), what)
            return
        yield thing
        if bars is not None and bar is not None:
            bars.advance(bar)


def rotated(cases: list[T], k: int) -> list[T]:
    """The cases in the order of item ``k``: each is first in turn."""
    first = k % len(cases)
    return cases[first:] + cases[:first]


def warm_up(engine: Engine, steps: int | None, world: World) -> float:
    """Seconds of one image and one answer, which are not counted, with calibration where the recipe needs it."""
    image, question = samples.questions(1, world)[0]

    def first() -> None:
        engine.generate(samples.PROMPT, seed=0, steps=steps)
        engine.answer(image, question)

    return timed(first, WallClock())[1]


def draw(engine: Engine, prompt: Prompt, seed: int, steps: int | None, world: World) -> Item:
    made, seconds = timed(lambda: engine.generate(prompt.text, seed=seed, steps=steps), WallClock())
    found = detect(made.images, world)[0]
    # A prompt stands before the image, or is the first forward.
    planned = engine.explain("generation", steps=steps, prompt_tokens=made.trace[0].past or made.trace[0].tokens)
    return Item(
        prompt.category,
        prompt.text,
        made.images[0],
        seen(found),
        judge(prompt, found),
        seconds,
        len(made.trace),
        sum(forward.rows > 0 for forward in made.trace),
        planned.totals.flops,
        seed=seed,
    )


def edit(engine: Engine, change: Edit, source: Image.Image, seed: int, steps: int | None, world: World) -> Item:
    made, seconds = timed(lambda: engine.edit(source, change.text, seed=seed, steps=steps), WallClock())
    found = detect(made.images, world)[0]
    return Item(
        change.kind,
        change.text,
        made.images[0],
        seen(found),
        edits_judge(change, found).right,
        seconds,
        len(made.trace),
        sum(forward.rows > 0 for forward in made.trace),
        0,
        seed=seed,
        source=source,
    )


def seen(found: Sequence[Any]) -> str:
    return ", ".join(f"{o.colour} {o.shape} {o.cell}" for o in found) or "nothing"


def question_tokens(engine: Engine, question: Question, image: Image.Image) -> int:
    """Tokens of a row besides its picture."""
    (script,) = engine.layout.answer([AnswerRequest(question.text, (image,))])
    row = sum(segment.length for action in script if isinstance(action, Append) for segment in action.segments)
    sizes = engine.sizes
    return row - (sizes.shown or sizes.image_tokens(None, None)) - sizes.spec.markers


def answer(engine: Engine, question: Question, image: Image.Image, tokens: int) -> Item:
    given, seconds = timed(lambda: engine.answer(image, question.text), WallClock())
    planned = engine.explain("understanding", question_tokens=tokens)
    return Item(
        question.kind,
        question.text,
        image,
        given.text,
        verdict(given.text) == question.verdict,
        seconds,
        len(given.trace),
        len(given.trace),
        sum(forward.flops for forward in planned.forwards[: len(given.trace)]),
        truth=question.verdict,
    )


def token_pruning(engine: Engine) -> list[dict[str, Any]]:
    """Which tokens are pruned, and whether this model's attention agrees with that choice."""
    known = engine.calibration
    if known is None or known.correlation is None:
        return []
    return [
        {
            "layer": m.layer,
            "side": m.side,
            "correlation": known.norm_correlation(m.layer),
            "fits": known.side(m.layer) == m.side,
        }
        for m in engine.recipe.token_prunes()
    ]
