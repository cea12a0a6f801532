"""Eq. 5 and the FLOPs of every plan: counted by torch against predicted from shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from flashu.evaluation.components import AUTOENCODER, Stopwatch, TracedEngine
from flashu.evaluation.flops import FlopClock, counting
from flashu.inference.calibrate import samples
from flashu.inference.engine import Engine
from flashu.plan import share
from flashu.plan.presets import fast, paper, quality
from flashu.plan.recipe import Recipe, exact
from flashu.studies.lab import figures
from flashu.studies.lab.cases import without_parts
from flashu.studies.lab.inner import prompts
from flashu.studies.lab.lab import Lab
from flashu.studies.lab.result import Claim, Result, Row, holds

T = TypeVar("T")


def counted(engine: Engine, request: Callable[[Engine], T]) -> tuple[T, float]:
    """A request's result and the FLOPs of the model's components."""
    clock = FlopClock()
    watch = Stopwatch(clock)
    with counting(clock):
        result = request(TracedEngine(engine, watch.part))
    spent = watch.take()
    return result, sum(spent.values()) - spent[AUTOENCODER]


def cost(lab: Lab) -> Result:
    """One image and one answer under every recipe; the autoencoder's and the time embedding's FLOPs left out."""
    presets = [exact(), *map(lab.fitted, (paper(), fast(), quality()))]
    rows = [_drawing(lab, r) for r in (*presets, *(case.recipe for case in without_parts(lab, "generation")))]
    rows += [_answering(lab, r) for r in (*presets, *(case.recipe for case in without_parts(lab, "understanding")))]
    return Result("Eq. 5 and FLOPs: predicted against counted", rows, _claims(rows, lab), lab.about(), figures.cost)


def _drawing(lab: Lab, recipe: Recipe) -> Row:
    engine, text = lab.engine_of(recipe), prompts(1)[0]
    engine.prepare("generation", text)
    made, flops = counted(engine, lambda traced: traced.generate(text))
    first = made.trace[0]
    prompt = first.past if first.step.kind == "block" else first.tokens
    return _row("generation", recipe, flops, engine.explain("generation", prompt_tokens=prompt).totals.flops)


def _answering(lab: Lab, recipe: Recipe) -> Row:
    engine, asked = lab.engine_of(recipe), samples.questions(1)[0]
    engine.prepare("understanding")
    given, flops = counted(engine, lambda traced: traced.answer(*asked))
    sizes = engine.sizes
    question = given.trace[0].tokens - sizes.image_tokens(None, None) - sizes.spec.markers
    plan = engine.explain("understanding", question_tokens=question)
    # The token that ends an answer was computed too; the answer may also have run to its longest.
    return _row("understanding", recipe, flops, sum(f.flops for f in plan.forwards[: len(given.trace)]))


def _row(task: str, recipe: Recipe, flops: float, predicted: float) -> Row:
    return {
        "task": task,
        "recipe": recipe.name,
        "counted GFLOPs": flops / 1e9,
        "predicted GFLOPs": predicted / 1e9,
        "counted / predicted": flops / predicted,
    }


def _claims(rows: list[Row], lab: Lab) -> list[Claim]:
    off = max(abs(r["counted / predicted"] - 1) for r in rows)
    # Eq. 5: C = (1 - tau/T) (1 - r_p) + tau/T of the FFN's cost.
    prune = paper().ffn_prunes()[0]
    recipes = (Recipe((prune,), "FFN pruning only"), exact())
    pruned, full = (lab.engine_of(recipe).explain("generation").forwards for recipe in recipes)
    ours = sum(f.neurons for f in pruned) / sum(f.neurons for f in full)
    late = share(prune.tau, len(pruned)) / len(pruned)
    eq5 = (1 - late) * (1 - prune.ratio) + late
    return [
        Claim(
            "(tool) FLOPs predicted from shapes are those computed",
            f"largest deviation over {len(rows)} plans: {off:.2%} (no prediction knows that a probe that finds the "
            "same list again saves a pass over the prompt, and that answers attend to their cache's free space too)",
            holds(off < 0.02),
        ),
        Claim(
            f"Eq. 5: the FFN costs {eq5:.3f} of its full cost",
            f"{ours:.3f}, kept widths being rounded to multiples",
            holds(abs(ours - eq5) < 0.02),
        ),
    ]
