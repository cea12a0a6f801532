"""The plan of a request, forward by forward, before anything runs. Sizes are enough: no weights are needed.

FLOPs come from shapes (`flashu.plan.cost`), per request, the autoencoder and the time embedding left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from flashu.errors import FlashUError, ImageError
from flashu.inference.calibrate.bank import alignment, keep_count
from flashu.inference.samplers import flow
from flashu.models.showo2.config import ShowO2Config
from flashu.models.showo2.processor import GenerationDefaults, Processor
from flashu.plan import FULL, LayerPlan, Plan, Room, Seen, Step, Task, cost
from flashu.plan.recipe import Recipe, exact
from flashu.plan.table import Forward, PlanTable, Prompt, Totals

PROMPT_TOKENS, QUESTION_TOKENS = 16, 32


@dataclass(frozen=True)
class Sizes:
    """What the table needs of a model. ``factor``: pixels per latent cell; ``max_text``: most words of a prompt."""

    name: str
    config: ShowO2Config
    defaults: GenerationDefaults
    factor: int
    max_text: int

    @classmethod
    def of(cls, config: ShowO2Config, processor: Processor) -> Sizes:
        factor = 8 if processor.vae is None else processor.vae.factor
        return cls("this model", config, processor.defaults, factor, processor.text.max_text)

    def image_tokens(self, height: int | None, width: int | None) -> int:
        """Image tokens of a picture in pixels, None = the usual size."""
        height, width = height or self.defaults.height, width or self.defaults.width
        cell = self.factor * self.config.patch_size
        if height < cell or width < cell or height % cell or width % cell:
            raise ImageError(f"images are multiples of {cell} pixels, at least {cell}; {width}x{height} is not")
        return (height // cell) * (width // cell)

    @property
    def room(self) -> Room:
        return Room(self.name, self.config.llm.num_hidden_layers, self.config.head.num_layers)


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
) -> PlanTable:
    """What a model of these sizes would compute for one image (generation) or one answer (understanding).

    ``prompt_tokens``: the prompt's with its two marks; ``question_tokens``: all text tokens around the image;
    None = the model's defaults. An answer may stop before ``max_new_tokens``: the table is the longest one.
    """
    counts = {"steps": steps, "prompt_tokens": prompt_tokens, "question_tokens": question_tokens}
    for name, value in (counts | {"max_new_tokens": max_new_tokens}).items():
        if value is not None and value < 1:
            raise FlashUError(f"{name} must be a whole number of at least 1, got {value}")
    if task not in ("generation", "understanding"):
        raise FlashUError(f"cannot plan {task!r}: the tasks are generation and understanding")
    settled = recipe.resolved("largest")  # which side is pruned does not change how much is computed
    settled.check(sizes.room)
    tokens = sizes.image_tokens(height, width)

    def table(of: Recipe) -> tuple[list[Forward], list[Prompt]]:
        if task == "understanding":
            budget = max_new_tokens or sizes.defaults.max_new_tokens
            return list(answering(sizes, of, tokens, question_tokens, budget)), []
        asked = steps or sizes.defaults.steps
        scale = sizes.defaults.guidance if guidance is None else guidance
        return drawing(sizes, of, tokens, prompt_tokens, asked, None if scale in (0, 1) else scale)

    forwards, prompts = table(settled)
    full, full_prompts = table(exact())
    return PlanTable(
        sizes.name,
        recipe.name,
        task,
        sizes.config.llm.num_hidden_layers,
        tuple(forwards),
        tuple(prompts),
        Totals.of(full, full_prompts),
    )


def drawing(
    sizes: Sizes, recipe: Recipe, image_tokens: int, prompt_tokens: int, steps: int, scale: float | None
) -> tuple[list[Forward], list[Prompt]]:
    """The forwards of one image, and the prompts' short passes before them: one per layer plan and number of rows."""
    cfg, neurons = sizes.config, bank_widths(sizes.config, recipe)
    total = recipe.forwards(steps)
    if total < 1:
        raise FlashUError(f"{steps} steps leave no forward under recipe {recipe.name!r}: ask for more")
    times = flow.times(total, sizes.defaults.shift, recipe.solver).tolist()
    tokens = sizes.max_text + image_tokens + 5 if recipe.padded else image_tokens + 1
    past = 0 if recipe.padded else prompt_tokens
    prompts: dict[tuple[LayerPlan, int], Prompt] = {}
    forwards = []
    kept, gap = 0, False
    for step, plan in folded(recipe, "generation", total, cfg.llm.num_hidden_layers, scale):
        plan = plan.possible(kept, gap)
        rows = plan.branches
        kept, gap = rows if plan.head == "run" else kept, gap or rows == 2
        looks = plan.head == "run" or plan.probe != "off"
        flops = rows * cost.head_out(cfg, image_tokens)
        if looks:
            if not recipe.padded and (plan.layers, rows) not in prompts:
                work = prompt_flops(cfg, plan.layers, prompt_tokens, neurons)
                prompts[plan.layers, rows] = Prompt(step.index, plan.layers, rows, prompt_tokens, rows * work)
            flops += cost.semantic_path(cfg, image_tokens)
            flops += rows * decoder(cfg, plan.layers, tokens, past, neurons)
        if plan.head == "run":
            flops += rows * cost.head_body(cfg, tokens, past + tokens) + cost.modulation(cfg)
        at = (times[step.index], times[step.index + 1])
        forwards.append(
            Forward(
                step, plan, rows, tokens if looks else 0, past if looks else 0, flops, width(plan, cfg, neurons), at
            )
        )
    return forwards, list(prompts.values())


def answering(sizes: Sizes, recipe: Recipe, image_tokens: int, question_tokens: int, budget: int) -> Iterator[Forward]:
    """The forwards of one answer of ``budget`` tokens: the prefill, then one token each."""
    cfg, neurons = sizes.config, bank_widths(sizes.config, recipe)
    logits = 2 * cfg.llm.hidden_size * cfg.llm.vocab_size
    held = [0] * cfg.llm.num_hidden_layers
    for step, plan in folded(recipe, "understanding", budget, len(held), None):
        tokens = question_tokens + image_tokens + 1 if step.kind == "prefill" else 1
        flops = logits + (cost.semantic_path(cfg, image_tokens) if step.kind == "prefill" else 0)
        new, past = tokens, held[-1]
        for i in range(len(held)):
            new -= sum(int(image_tokens * route.ratio) for route in plan.layers.routes if route.layer == i)
            flops += layer(cfg, plan.layers, i, new, held[i], neurons, keep=True)
            held[i] += new
        yield Forward(step, plan, 1, tokens, past, flops, width(plan, cfg, neurons), None, kept_tokens=new)


def folded(recipe: Recipe, task: Task, total: int, layers: int, scale: float | None) -> Iterator[tuple[Step, Plan]]:
    """Every forward's plan. Which layers are skipped is known at run time only, so each probe is answered with made-up
    similarities: the number skipped is right. They change from probe to probe, as real ones usually do."""
    seen, probes = Seen(), 0
    for index in range(total):
        kind = "denoise" if task == "generation" else "decode" if index else "prefill"
        step = Step(task, kind, index, total)  # type: ignore[arg-type]
        plan = recipe.plan(step, seen, scale)
        yield step, plan
        if plan.probe != "off":
            seen, probes = Seen(tuple(float((i + probes) % layers) for i in range(layers))), probes + 1


def bank_widths(cfg: ShowO2Config, recipe: Recipe) -> dict[str, int]:
    """Neurons kept by each FFN bank the recipe needs."""
    every = cfg.llm.intermediate_size
    return {m.mask: keep_count(every, m.ratio, alignment(every)) for m in recipe.ffn_prunes()}


def width(plan: Plan, cfg: ShowO2Config, neurons: Mapping[str, int]) -> int:
    return cfg.llm.intermediate_size if plan.layers.ffn == FULL else neurons[plan.layers.ffn]


def layer(
    cfg: ShowO2Config, plan: LayerPlan, i: int, tokens: int, past: int, neurons: Mapping[str, int], *, keep: bool
) -> int:
    """Decoder layer i on one row; skipped, it still owes its keys and values to a cache that is kept."""
    if i in plan.skip:
        llm = cfg.llm
        kv = 2 * llm.num_key_value_heads * (llm.hidden_size // llm.num_attention_heads)
        return 2 * tokens * llm.hidden_size * kv if keep else 0
    inner = cfg.llm.intermediate_size if plan.ffn == FULL else neurons[plan.ffn]
    return cost.decoder_layer(cfg, tokens, past + tokens, inner)


def decoder(cfg: ShowO2Config, plan: LayerPlan, tokens: int, past: int, neurons: Mapping[str, int]) -> int:
    """All layers on one row of a generation."""
    return sum(layer(cfg, plan, i, tokens, past, neurons, keep=False) for i in range(cfg.llm.num_hidden_layers))


def prompt_flops(cfg: ShowO2Config, plan: LayerPlan, tokens: int, neurons: Mapping[str, int]) -> int:
    """One prompt's keys and values, for the decoder and the flow head."""
    layers: Sequence[int] = range(cfg.llm.num_hidden_layers)
    through = sum(layer(cfg, plan, i, tokens, 0, neurons, keep=True) for i in layers)
    return through + cost.head_body(cfg, tokens, tokens)
