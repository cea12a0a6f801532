"""Figure 11: time by component, vanilla and FlashU."""

from __future__ import annotations

from statistics import median

from flashu.evaluation.components import AUTOENCODER, DECODER, FEATURES, HEAD, Stopwatch, TracedEngine
from flashu.evaluation.timing import clock_of, in_turns, timed
from flashu.inference.engine import Engine
from flashu.plan.recipe import exact
from flashu.studies.lab import figures
from flashu.studies.lab.cases import FLASHU, VANILLA, flashu
from flashu.studies.lab.lab import Lab
from flashu.studies.lab.result import Claim, Result, Row, holds

REST = "rest"
CLAIMED = {FEATURES: 1.49, DECODER: 1.70, HEAD: 2.82, AUTOENCODER: 1.0}


def measured(engine: Engine, text: str, seed: int) -> dict[str, float]:
    """Seconds of one image, by component."""
    clock = clock_of(engine.model.device)
    watch = Stopwatch(clock)
    traced = TracedEngine(engine, watch.part)
    _, whole = timed(lambda: traced.generate(text, seed=seed), clock)
    spent = watch.take()
    return spent | {REST: max(0.0, whole - sum(spent.values()))}


def components(lab: Lab) -> Result:
    """Medians over ``lab.size.repeats`` images, vanilla and FlashU in turns."""
    engines = {VANILLA: lab.engine_of(exact()), FLASHU: lab.engine_of(flashu(lab).recipe)}
    took: dict[str, list[dict[str, float]]] = {name: [] for name in engines}
    texts = lab.dpg.texts
    for turn, name in in_turns(list(engines), lab.size.repeats + 1):
        spent = measured(engines[name], texts[turn % len(texts)], turn)
        if turn:  # the first is the warm-up
            took[name].append(spent)
    slow, fast = ({c: median(s[c] for s in many) for c in many[0]} for many in took.values())
    rows: list[Row] = [
        {"component": component, "vanilla ms": seconds * 1e3, "FlashU ms": fast[component] * 1e3}
        | {"speed-up": seconds / fast[component] if fast[component] else None}
        | {"share of vanilla": seconds / sum(slow.values()), "claimed": CLAIMED.get(component)}
        for component, seconds in slow.items()
        if seconds  # a model need not have all of them
    ]
    about = lab.about(n=lab.size.repeats)
    return Result("Figure 11: time by component", rows, _claims(rows), about, figures.components, 2.8)


def _claims(rows: list[Row]) -> list[Claim]:
    by = {row["component"]: row for row in rows}
    if HEAD not in by:
        return []
    saved = {c: by[c]["vanilla ms"] - by[c]["FlashU ms"] for c in (FEATURES, DECODER, HEAD)}
    ratios = {c: by[c]["speed-up"] or 0.0 for c in saved}
    return [
        Claim(
            "the head gains most (2.82x), then the LLM (1.70x), then features (1.49x)",
            ", ".join(f"{c} {r:.2f}x" for c, r in ratios.items()),
            holds(ratios[HEAD] > ratios[DECODER] > ratios[FEATURES]),
        ),
        Claim(
            "the LLM is the largest part (49 %) and saves the most time",
            f"LLM {by[DECODER]['share of vanilla']:.0%} of vanilla; saved: "
            + ", ".join(f"{c} {ms:.0f} ms" for c, ms in saved.items()),
            holds(max(saved, key=lambda c: saved[c]) == DECODER),
        ),
    ]
