"""The plan of a request, forward by forward, before anything runs. A model's spec is enough: no weights are needed.

FLOPs come from shapes (`plan.cost`), per request, the autoencoder and the time embedding left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from flashu.errors import FlashUError
from flashu.plan import cost
from flashu.plan.guidance import Guidance
from flashu.plan.limits import check_number
from flashu.plan.plan import MAIN, Kind, LayerPlan, Observations, Plan, Step, Task
from flashu.plan.recipe import Recipe, exact
from flashu.plan.spec import ModelSpec, WeightCounts
from flashu.plan.table import Forward, PlanTable, Prompt, Totals

PROMPT_TOKENS, QUESTION_TOKENS = 16, 32
Pieces: TypeAlias = tuple[tuple[str, int], ...]
"""What stands before an image: (name, tokens) of each piece."""


@dataclass(frozen=True)
class Sizes:
    """What the table needs of a model. ``defaults``: its `GenerationDefaults`. ``image_tokens``: (height, width in
    pixels, None = the usual) -> tokens. ``padded``: image tokens -> length of a padded row. ``times``: (forwards,
    solver) -> flow times, the last one the end; None where images are not drawn by flow. ``weights``: (one of
    ``parts``, None = all of the model) -> how many numbers its weights are, without the autoencoder; None = not known.
    ``shown``: tokens of a picture in a question; None = as many as of an image to draw.

    For models with more than one prompt before an image and one guidance scale: ``guidance``: (scale asked for | None,
    editing) -> `Guidance`; ``contexts``: (prompt tokens, image tokens, editing) -> what stands before the image of each
    branch, piece by piece (equal ones are computed once).
    """

    name: str
    spec: ModelSpec
    defaults: Any
    image_tokens: Callable[[int | None, int | None], int]
    padded: Callable[[int], int]
    times: Callable[[int, str], list[float]] | None
    weights: Callable[[str | None], WeightCounts] | None = None
    parts: tuple[str, ...] = ()
    shown: int | None = None
    guidance: Callable[[float | None, bool], Guidance] | None = None
    contexts: Callable[[int, int, bool], Mapping[str, Pieces]] | None = None


def tabulate(
    sizes: Sizes,
    recipe: Recipe,
    task: Task,
    *,
    steps: int | None = None,
    guidance: float | None = None,
    prompt_tokens: int = PROMPT_TOKENS,
    question_tokens: int = QUESTION_TOKENS,
    height: int | None = None,
    width: int | None = None,
    max_new_tokens: int | None = None,
    edit: bool = False,
) -> PlanTable:
    """What a model of these sizes would compute for one image (generation) or one answer (understanding).

    ``prompt_tokens``: the prompt's with its two marks; ``question_tokens``: all text tokens around the image;
    None = the model's defaults. ``edit``: the image is drawn of another one of its size. An answer may stop before
    ``max_new_tokens``: the table is the longest one.
    """
    numbers = {"steps": steps, "guidance": guidance, "height": height, "width": width, "max_new_tokens": max_new_tokens}
    for name, value in (numbers | {"prompt_tokens": prompt_tokens, "question_tokens": question_tokens}).items():
        check_number(name, value)
    if task not in ("generation", "understanding"):
        raise FlashUError(f"cannot plan {task!r}: the tasks are generation and understanding")
    settled = recipe.resolved("largest")  # which side is pruned does not change how much is computed
    settled.check(sizes.spec)
    if edit and (sizes.contexts is None or task != "generation"):
        raise FlashUError(f"{sizes.spec.family} does not edit images")
    tokens = sizes.image_tokens(height, width)

    def table(of: Recipe) -> tuple[list[Forward], list[Prompt]]:
        if task == "understanding":
            budget = max_new_tokens or sizes.defaults.max_new_tokens
            return list(answering(sizes, of, sizes.shown or tokens, question_tokens, budget)), []
        asked = steps or sizes.defaults.steps
        scale = sizes.defaults.guidance if guidance is None else guidance
        scales = sizes.spec.scales(scale)
        guided = Guidance(scales) if sizes.guidance is None else sizes.guidance(guidance, edit)
        if sizes.spec.drawing == "autoregressive":
            return list(drawing_tokens(sizes, of, tokens, prompt_tokens, scales)), []
        if sizes.contexts is None:
            before: Mapping[str, Pieces] = {name: ((name, prompt_tokens),) for name in (MAIN, *scales)}
        else:
            before = sizes.contexts(prompt_tokens, tokens, edit)
        return drawing(sizes, of, tokens, before, asked, guided)

    forwards, prompts = table(settled)
    full, full_prompts = table(exact())
    return PlanTable(
        sizes.name, recipe.name, task, sizes.spec.layers, tuple(forwards), tuple(prompts), Totals.of(full, full_prompts)
    )


def drawing(
    sizes: Sizes, recipe: Recipe, image_tokens: int, before: Mapping[str, Pieces], steps: int, guidance: Guidance
) -> tuple[list[Forward], list[Prompt]]:
    """The forwards of one image drawn block by block, and the short passes over what stands ``before`` it in each
    branch: one per layer plan and number of rows."""
    spec, widths = sizes.spec, cost.bank_widths(sizes.spec, recipe)
    total = recipe.forwards(steps)
    if total < 1:
        raise FlashUError(f"{steps} steps leave no forward under recipe {recipe.name!r}: ask for more")
    times = None if sizes.times is None else sizes.times(total, recipe.solver)
    tokens = sizes.padded(image_tokens) if recipe.padded else image_tokens + spec.markers
    prompts: dict[tuple[LayerPlan | None, int], Prompt] = {}
    forwards = []
    kept: tuple[str, ...] = ()
    deltas: frozenset[str] = frozenset()
    for step, plan in folded(recipe, "generation", "block", total, spec.layers, guidance, times):
        plan = plan.possible(kept, deltas)
        contexts = list(dict.fromkeys(before[name] for name in plan.branches))
        pasts = [0 if recipe.padded else sum(count for _, count in pieces) for pieces in contexts]
        rows, past = len(contexts), pasts[0]
        if plan.features == "run":
            kept = plan.branches
        deltas |= frozenset(plan.branches) - {MAIN}
        computed = plan.features == "run" or plan.probe != "off"
        flops = len(plan.branches) * (spec.output if spec.drawing == "flow" else spec.code_logits).flops(image_tokens)
        if computed:
            context = plan.layers if spec.context == "same" else None
            if not recipe.padded and (context, rows) not in prompts:
                under = context or LayerPlan()
                pieces = {one[: n + 1] for one in contexts for n in range(len(one))}
                if context is None and any(plan is None for plan, _ in prompts):
                    pieces = set()  # cached: computed before
                work = 0
                for whole in pieces:
                    done, new = sum(count for _, count in whole[:-1]), whole[-1][1]
                    work += cost.decoder(spec, under, new, done, widths, keep=True)
                    work += spec.head.flops(new, done + new, once=False)
                if pieces:
                    prompts[context, rows] = Prompt(step.index, under, rows, max(pasts), work)
            flops += spec.image.flops(image_tokens, image_tokens)
            flops += sum(cost.decoder(spec, plan.layers, tokens, past, widths) for past in pasts)
        if plan.features == "run":
            flops += spec.head.flops(tokens, past + tokens, rows)
        at = None if times is None else (times[step.index], times[step.index + 1])
        row_tokens, row_past = (tokens, past) if computed else (0, 0)
        neurons = cost.ffn_width(spec, plan, widths)
        forwards.append(Forward(step, plan, rows, row_tokens, row_past, flops, neurons, at))
    return forwards, list(prompts.values())


def drawing_tokens(
    sizes: Sizes, recipe: Recipe, image_tokens: int, prompt_tokens: int, scales: Mapping[str, float]
) -> Iterator[Forward]:
    """The forwards of one image drawn token by token: the prompts' prefill, then one code each."""
    spec, widths = sizes.spec, cost.bank_widths(sizes.spec, recipe)
    past = 0
    for step, plan in folded(recipe, "generation", "token", image_tokens, spec.layers, Guidance(scales)):
        rows, tokens = len(plan.branches), 1 if step.index else prompt_tokens
        flops = rows * cost.decoder(spec, plan.layers, tokens, past, widths, keep=True)
        flops += rows * spec.code_logits.flops(1)
        yield Forward(step, plan, rows, tokens, past, flops, cost.ffn_width(spec, plan, widths), None)
        past += tokens


def answering(sizes: Sizes, recipe: Recipe, image_tokens: int, question_tokens: int, budget: int) -> Iterator[Forward]:
    """The forwards of one answer of ``budget`` tokens: the prefill, then one token each."""
    spec, widths = sizes.spec, cost.bank_widths(sizes.spec, recipe)
    held = [0] * spec.layers
    picture = spec.picture or spec.image
    for step, plan in folded(recipe, "understanding", "token", budget, spec.layers, Guidance()):
        first = step.kind == "prefill"
        tokens = question_tokens + image_tokens + spec.markers if first else 1
        flops = spec.logits.flops(1) + (picture.flops(image_tokens, image_tokens) if first else 0)
        new, past = tokens, held[-1]
        for i in range(spec.layers):
            new -= sum(int(image_tokens * route.ratio) for route in plan.layers.drops if route.layer == i)
            flops += cost.layer(spec, plan.layers, i, new, held[i] + new, widths, keep=True)
            held[i] += new
        neurons = cost.ffn_width(spec, plan, widths)
        yield Forward(step, plan, 1, tokens, past, flops, neurons, None, kept_tokens=new)


def folded(
    recipe: Recipe,
    task: Task,
    kind: Kind,
    total: int,
    layers: int,
    guidance: Guidance,
    times: Sequence[float] | None = None,
) -> Iterator[tuple[Step, Plan]]:
    """Every forward's plan. Which layers are skipped is known at run time only, so each probe is answered with made-up
    similarities: the number skipped is right. They change from probe to probe, as real ones usually do."""
    observed, probes = Observations(), 0
    for index in range(total):
        step = Step(task, "prefill" if kind == "token" and not index else kind, index, total)
        time = None if times is None else times[index]
        plan = recipe.plan(step, observed, guidance.at(time))
        yield step, plan
        if plan.probe != "off":
            observed = Observations(tuple(float((i + probes) % layers) for i in range(layers)))
            probes += 1
