"""Figure 11: time by component, vanilla and FlashU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

from torch import nn

from flashu.evaluation.timing import Clock, clock_of, timed
from flashu.inference.engine import Engine
from flashu.plan.recipe import exact, paper
from flashu.studies.lab import figures
from flashu.studies.lab.inner import FEATURES, HEAD, LLM, component_modules
from flashu.studies.lab.lab import Lab
from flashu.studies.lab.result import Claim, Result, Row, holds

VAE, REST = "VAE", "rest"
CLAIMED = {FEATURES: 1.49, LLM: 1.70, HEAD: 2.82, VAE: 1.0}


@contextmanager
def timed_components(engine: Engine, clock: Clock) -> Iterator[dict[str, float]]:
    """Seconds spent in each component while inside, known on leaving; the model is then as it was before."""
    parts = component_modules(engine)
    spent = dict.fromkeys(parts, 0.0)
    began: dict[str, Any] = {}
    spans: list[tuple[str, Any, Any]] = []
    handles: list[Any] = []

    def watch(component: str, module: nn.Module) -> None:
        def enter(*_: Any) -> None:
            began[component] = clock.now()

        def leave(*_: Any) -> None:
            spans.append((component, began[component], clock.now()))

        handles.extend((module.register_forward_pre_hook(enter), module.register_forward_hook(leave)))

    for component, modules in parts.items():
        for module in modules:
            watch(component, module)
    try:
        yield spent
    finally:
        for handle in handles:
            handle.remove()
    clock.settle()
    for component, start, end in spans:
        spent[component] += clock.between(start, end)


def measured(engine: Engine, text: str, seed: int) -> dict[str, float]:
    """Seconds by component of one image."""
    clock = clock_of(engine.model.device)
    with timed_components(engine, clock) as spent:
        made, whole = timed(lambda: engine.generate(text, seed=seed), clock)
    spent[VAE] = timed(lambda: engine.decode(made.latents), clock)[1]
    return spent | {REST: max(0.0, whole - sum(spent.values()))}


def components(lab: Lab) -> Result:
    """Medians over ``lab.size.repeats`` images, vanilla and FlashU in turns."""
    engines = {"vanilla": lab.engine_of(exact()), "FlashU": lab.engine_of(paper())}
    took: dict[str, list[dict[str, float]]] = {name: [] for name in engines}
    texts = lab.dpg.texts
    for turn in range(lab.size.repeats + 1):
        for name, engine in engines.items():
            spent = measured(engine, texts[turn % len(texts)], turn)
            if turn:  # the first is the warm-up
                took[name].append(spent)
    rows: list[Row] = []
    slow, fast = ({c: median(s[c] for s in many) for c in many[0]} for many in took.values())
    for component in slow:
        rows.append(
            {"component": component, "vanilla ms": slow[component] * 1e3, "FlashU ms": fast[component] * 1e3}
            | {"speed-up": slow[component] / fast[component] if fast[component] else None}
            | {"share of vanilla": slow[component] / sum(slow.values()), "claimed": CLAIMED.get(component)}
        )
    about = lab.about(n=lab.size.repeats)
    return Result("Figure 11: time by component", rows, _claims(rows), about, figures.components, 2.8)


def _claims(rows: list[Row]) -> list[Claim]:
    by = {r["component"]: r for r in rows}
    saved = {c: by[c]["vanilla ms"] - by[c]["FlashU ms"] for c in (FEATURES, LLM, HEAD)}
    ratios = {c: by[c]["speed-up"] or 0.0 for c in (FEATURES, LLM, HEAD)}
    return [
        Claim(
            "the head gains most (2.82x), then the LLM (1.70x), then features (1.49x)",
            ", ".join(f"{c} {r:.2f}x" for c, r in ratios.items()),
            holds(ratios[HEAD] > ratios[LLM] > ratios[FEATURES]),
        ),
        Claim(
            "the LLM is the largest part (49 %) and saves the most time",
            f"LLM {by[LLM]['share of vanilla']:.0%} of vanilla; saved: "
            + ", ".join(f"{c} {ms:.0f} ms" for c, ms in saved.items()),
            holds(max(saved, key=lambda c: saved[c]) == LLM),
        ),
    ]
