"""Figure 11: time by component, vanilla and FlashU."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from flashu.inference.engine import Engine
from flashu.models.showo2.model import ShowO2
from flashu.plan.recipe import exact, paper
from flashu.studies.lab.lab import Lab, synchronize
from flashu.studies.lab.result import COLOURS, Claim, Result, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEATURES, LLM, HEAD, VAE, REST = "features", "LLM", "head", "VAE", "rest"
CLAIMED = {FEATURES: 1.49, LLM: 1.70, HEAD: 2.82, VAE: 1.0}


def parts(model: ShowO2) -> dict[str, Sequence[nn.Module]]:
    """The modules of each component; none lies inside another."""
    features = (model.image_embedder_und, model.image_embedder_gen, model.und_trans, model.fusion_proj)
    return {
        FEATURES: (*features, model.time_embed, model.time_embed_proj),
        LLM: (*model.layers, model.showo.model.norm),
        HEAD: (model.diff_proj, *model.diffusion_head_a, model.diffusion_head_b),
    }


@contextmanager
def stopwatch(model: ShowO2) -> Iterator[dict[str, float]]:
    """Seconds spent in each component while inside; the model is as before on leaving."""
    spent = dict.fromkeys((FEATURES, LLM, HEAD), 0.0)
    began: dict[str, float] = {}
    handles = []

    def watch(component: str, module: nn.Module) -> None:
        def enter(*_: Any) -> None:
            synchronize(model.device)
            began[component] = time.perf_counter()

        def leave(*_: Any) -> None:
            synchronize(model.device)
            spent[component] += time.perf_counter() - began[component]

        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave))

    for component, modules in parts(model).items():
        for module in modules:
            watch(component, module)
    try:
        yield spent
    finally:
        for handle in handles:
            handle.remove()


def measured(engine: Engine, text: str, seed: int) -> dict[str, float]:
    """Seconds by component of one image."""
    with stopwatch(engine.model) as spent:
        began = time.perf_counter()
        made = engine.generate(text, seed=seed)
        synchronize(engine.model.device)
        whole = time.perf_counter() - began
    began = time.perf_counter()
    engine.decode(made.latents)
    synchronize(engine.model.device)
    spent[VAE] = time.perf_counter() - began
    return spent | {REST: max(0.0, whole - sum(spent.values()))}


@dataclass(frozen=True)
class Components(Result):
    """Stacked time per image."""

    title: ClassVar[str] = "Figure 11: time by component"
    size: ClassVar[tuple[float, float]] = (11.0, 2.8)

    def paint(self, figure: Figure) -> None:
        axes = figure.subplots()
        left = dict.fromkeys(("vanilla", "FlashU"), 0.0)
        for colour, row in zip(COLOURS, self.table, strict=False):
            values = [row[f"{name} ms"] for name in left]
            axes.barh(list(left), values, left=list(left.values()), color=colour, label=row["component"])
            left = {name: left[name] + value for name, value in zip(left, values, strict=True)}
        axes.invert_yaxis()
        axes.set_xlabel("milliseconds per image, batch 1, timers included")
        axes.legend(frameon=False, ncols=5, loc="upper center", bbox_to_anchor=(0.5, 1.25))
        axes.spines[["top", "right"]].set_visible(False)


def components(lab: Lab) -> Components:
    """Medians over ``lab.size.repeats`` images, vanilla and FlashU in turns."""
    engines = {"vanilla": lab.engine_of(exact()), "FlashU": lab.engine_of(paper())}
    took: dict[str, list[dict[str, float]]] = {name: [] for name in engines}
    texts = lab.dpg.texts
    for turn in range(lab.size.repeats + 1):
        for name, engine in engines.items():
            spent = measured(engine, texts[turn % len(texts)], turn)
            if turn:  # the first is the warm-up
                took[name].append(spent)
    found = {name: {c: median(s[c] for s in many) for c in many[0]} for name, many in took.items()}
    rows: list[Row] = []
    for component in (FEATURES, LLM, HEAD, VAE, REST):
        slow, fast = found["vanilla"][component], found["FlashU"][component]
        whole = sum(found["vanilla"].values())
        rows.append(
            {"component": component, "vanilla ms": slow * 1e3, "FlashU ms": fast * 1e3}
            | {"speed-up": slow / fast if fast else None, "share of vanilla": slow / whole}
            | {"claimed": CLAIMED.get(component)}
        )
    return Components(tuple(rows), _claims(rows), lab.about(n=lab.size.repeats))


def _claims(rows: list[Row]) -> tuple[Claim, ...]:
    by = {r["component"]: r for r in rows}
    gained = {c: by[c]["vanilla ms"] - by[c]["FlashU ms"] for c in (FEATURES, LLM, HEAD)}
    ratios = {c: by[c]["speed-up"] or 0.0 for c in (FEATURES, LLM, HEAD)}
    told = ", ".join(f"{c} {r:.2f}x" for c, r in ratios.items())
    return (
        Claim(
            "the head gains most (2.82x), then the LLM (1.70x), then features (1.49x)",
            told,
            "yes" if ratios[HEAD] > ratios[LLM] > ratios[FEATURES] else "no",
        ),
        Claim(
            "the LLM is the largest part (49 %) and saves the most time",
            f"LLM {by[LLM]['share of vanilla']:.0%} of vanilla; saved: "
            + ", ".join(f"{c} {ms:.0f} ms" for c, ms in gained.items()),
            "yes" if max(gained, key=lambda c: gained[c]) == LLM else "no",
        ),
    )
