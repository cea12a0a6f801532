"""Eq. 5 and the FLOPs of every plan: counted by torch against predicted from shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from flashu.bench.flops import FlopClock, counting
from flashu.inference.engine import Engine
from flashu.plan import share
from flashu.plan.recipe import Recipe, exact, fast, paper, quality
from flashu.studies.lab.ablation import GENERATION, UNDERSTANDING
from flashu.studies.lab.lab import Lab
from flashu.studies.lab.result import COLOURS, Claim, Result, Row
from flashu.studies.lab.workload import prompts, questions

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Cost(Result):
    """Predicted against counted, both tasks."""

    title: ClassVar[str] = "Eq. 5 and FLOPs: predicted against counted"
    size: ClassVar[tuple[float, float]] = (11.0, 4.5)

    def paint(self, figure: Figure) -> None:
        for axes, task in zip(figure.subplots(1, 2), ("generation", "understanding"), strict=True):
            rows = [r for r in self.table if r["task"] == task]
            at = range(len(rows))
            axes.barh(
                [y - 0.2 for y in at], [r["counted GFLOPs"] for r in rows], 0.38, color=COLOURS[0], label="counted"
            )
            axes.barh(
                [y + 0.2 for y in at], [r["predicted GFLOPs"] for r in rows], 0.38, color=COLOURS[3], label="predicted"
            )
            axes.set_yticks(list(at), [r["recipe"] for r in rows])
            axes.invert_yaxis()
            axes.set_xlabel("GFLOPs per request")
            axes.set_title(task, loc="left")
            axes.legend(frameon=False)
            axes.spines[["top", "right"]].set_visible(False)


def recipes(task: str) -> list[Recipe]:
    parts = GENERATION if task == "generation" else UNDERSTANDING
    return [exact(), paper(), fast(), quality(), *(paper().without(name) for name in parts.values())]


def counted(call: Callable[[], Any]) -> tuple[Any, float]:
    """A call's result and its FLOPs."""
    clock = FlopClock()
    with counting(clock):
        made = call()
    return made, clock.now()


def cost(lab: Lab) -> Cost:
    """One image and one answer under every recipe; the autoencoder's and the time embedding's FLOPs left out."""
    rows: list[Row] = []
    text = prompts(1)[0]
    image, question = questions(1)[0]
    for recipe in recipes("generation"):
        engine = lab.engine_of(recipe)
        engine.prepare("generation", text)
        made, flops = counted(lambda e=engine: e.generate(text))  # type: ignore[misc]
        flops -= counted(lambda e=engine, z=made.latents: e.decode(z))[1]  # type: ignore[misc]
        flops -= _time_embedding(engine, len(made.trace))
        tokens = len(engine.processor.text.prompt(text))
        rows.append(_row("generation", recipe, flops, engine.explain("generation", prompt_tokens=tokens).totals.flops))
    for recipe in recipes("understanding"):
        engine = lab.engine_of(recipe)
        engine.prepare("understanding")
        given, flops = counted(lambda e=engine: e.answer(image, question))  # type: ignore[misc]
        vae = engine.processor.vae
        pixels = engine.processor.pixels(image).to(engine.model.device)
        assert vae is not None
        flops -= counted(lambda v=vae, x=pixels: v.encode(x))[1]  # type: ignore[misc]
        flops -= _time_embedding(engine, 1)
        before, after = engine.processor.text.question(question)
        plan = engine.explain("understanding", question_tokens=len(before) + len(after))
        # The token that ends an answer was computed too; the answer may also have run to its longest.
        forwards = plan.forwards[: len(given.trace)]
        rows.append(_row("understanding", recipe, flops, sum(f.flops for f in forwards)))
    return Cost(tuple(rows), _claims(rows, lab), lab.about())


def _row(task: str, recipe: Recipe, flops: float, predicted: float) -> Row:
    return {
        "task": task,
        "recipe": recipe.name,
        "counted GFLOPs": flops / 1e9,
        "predicted GFLOPs": predicted / 1e9,
        "counted / predicted": flops / predicted,
    }


def _time_embedding(engine: Engine, times: int) -> float:
    import torch

    model = engine.model
    return counted(lambda: model.embed_time(torch.zeros(times, device=model.device)))[1]


def _claims(rows: list[Row], lab: Lab) -> tuple[Claim, ...]:
    off = max(abs(r["counted / predicted"] - 1) for r in rows)
    # Eq. 5: C = (1 - tau/T) (1 - r_p) + tau/T of the FFN's cost.
    prune = paper().ffn_prunes()[0]
    engine = lab.engine_of(Recipe((prune,), "FFN pruning only"))
    plan = engine.explain("generation")
    total = len(plan.forwards)
    full = lab.engine.model.config.llm.intermediate_size
    ours = sum(f.neurons for f in plan.forwards) / (total * full)
    late = share(prune.tau, total) / total
    eq5 = (1 - late) * (1 - prune.ratio) + late
    return (
        Claim(
            "(tool) FLOPs predicted from shapes are those computed",
            f"largest deviation over {len(rows)} plans: {off:.2%} (a probe that finds the same list again "
            "saves a pass over the prompt, which no prediction knows)",
            "yes" if off < 0.02 else "no",
        ),
        Claim(
            f"Eq. 5: the FFN costs {eq5:.3f} of its full cost",
            f"{ours:.3f}, kept widths being rounded to multiples",
            "yes" if abs(ours - eq5) < 0.02 else "no",
        ),
    )
