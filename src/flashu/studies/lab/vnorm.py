"""Figure 5: attention received against value norm, and V-norm pruning against other choices of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from flashu.evaluation.score_table import pooled
from flashu.evaluation.statistics import Difference
from flashu.inference.calibrate.attention import spearman
from flashu.plan import Score, Side
from flashu.plan.methods import TokenPrune
from flashu.plan.recipe import Recipe, exact
from flashu.runtime.scores import SCORES, Inner
from flashu.runtime.tokens import Tokens
from flashu.studies.lab.contest import Contender, Place, answering
from flashu.studies.lab.lab import Lab
from flashu.studies.lab.result import COLOURS, INK, Claim, Holds, Result, Row, bounds, lines
from flashu.studies.lab.workload import watch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LAYER = 2
"""Pruned after this layer, as in Table 8."""
RATIOS = (0.5, 0.75, 0.25)
ARMS: dict[str, tuple[Score, Side]] = {
    "V-norm, largest go (paper)": ("value_norm", "largest"),
    "V-norm, smallest go": ("value_norm", "smallest"),
    "attention (FastV)": ("attention", "smallest"),
    "K-norm, largest go": ("key_norm", "largest"),
    "K-norm, smallest go": ("key_norm", "smallest"),
    "duplication (DART)": ("duplication", "largest"),
}
PAPER, TURNED = list(ARMS)[:2]


class Received:
    """Observer of prefills: the visual tokens' attention received and value norms, layer by layer."""

    def __init__(self, num_layers: int) -> None:
        self.pairs: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(num_layers)]
        self._held: dict[str, Tensor] = {}

    def __call__(self, layer: int, name: str, value: Tensor, tokens: Tokens) -> None:
        self._held[name] = value
        if name != "value" or not bool(tokens.visual.any()):
            return
        inner = Inner(tokens, self._held["key"], value, value, self._held["query"])
        attention, norm = (SCORES[kind](inner, 0).cpu() for kind in ("attention", "value_norm"))
        for row, visual in enumerate(tokens.visual):
            self.pairs[layer].append((attention[row][visual], norm[row][visual].sqrt()))

    def correlations(self) -> list[Tensor]:
        """Spearman's correlation of every sample, by layer."""
        return [torch.tensor([spearman(a, v) for a, v in samples]) for samples in self.pairs]


@dataclass(frozen=True)
class VNorm(Result):
    """The correlation by layer; answers under every choice of tokens."""

    title: ClassVar[str] = "Figure 5: value norms as a proxy for attention"
    size: ClassVar[tuple[float, float]] = (11.0, 4.8)

    points: tuple[Tensor, Tensor]

    def paint(self, figure: Figure) -> None:
        scatter, layers, scores = figure.subplots(1, 3)
        scatter.scatter(*self.points, s=6, color=COLOURS[0], alpha=0.5, linewidths=0)
        scatter.set(xlabel="attention received", ylabel="value norm")
        scatter.set_title(f"visual tokens in layer {LAYER}", loc="left")
        rows = [r for r in self.table if r["part"] == "correlation"]
        values, errors = bounds(rows, "Spearman")
        layers.bar([r["layer"] for r in rows], values, yerr=errors, color=COLOURS[3], capsize=2)
        layers.axhline(0, color=INK, lw=0.8)
        layers.set(xlabel="layer", ylabel="rank correlation, mean over samples")
        pruned = [r for r in self.table if r["part"] == "pruning"]
        lines(scores, pruned, "method", "ratio")
        scores.axhline(self.about["vanilla"], color=INK, lw=0.8, ls=":")
        scores.set(xlabel=f"share of visual tokens dropped after layer {LAYER}", ylabel="overall score (dots: vanilla)")
        for axes in (scatter, layers, scores):
            axes.spines[["top", "right"]].set_visible(False)


def vnorm(lab: Lab) -> VNorm:
    """Correlation on ``lab.size.samples`` questions, pruning on the five suites at equal ratios."""
    received = Received(lab.engine.model.num_layers)
    watch(lab.engine, "understanding", lab.size.samples, received)
    rows: list[Row] = []
    for n, values in enumerate(received.correlations(), 1):
        mean, error = float(values.mean()), 1.96 * float(values.std(correction=0)) / len(values) ** 0.5
        rows.append(
            {"part": "correlation", "layer": n, "Spearman": mean, "Spearman low": mean - error}
            | {"Spearman high": mean + error, "n": len(values)}
        )
    ratios = sorted(RATIOS[: max(2, lab.size.points // 2)])
    arms = ARMS | {f"random {k}": ("random", "largest") for k in range(lab.size.arms)}
    labels = [(name, ratio) for ratio in ratios for name in arms]
    field = [Contender("vanilla", exact())]
    for k, (name, ratio) in enumerate(labels):
        score, side = arms[name]
        prune = TokenPrune(layer=LAYER, ratio=ratio, side=side, score=score, seed=k)
        field.append(Contender(name, Recipe((prune,), f"{name} {ratio:g}")))
    places = answering(lab, field, timed=False)
    found = dict(zip(labels, places[1:], strict=True))
    rows += [{"part": "pruning", "ratio": ratio} | p.row("Vision", "GQA") for (_, ratio), p in found.items()]
    points = [torch.cat(column) for column in zip(*received.pairs[LAYER - 1], strict=True)]
    about = lab.about(vanilla=places[0].sheet.overall.value, samples=lab.size.samples, questions=len(lab.und.items))
    return VNorm(tuple(rows), _claims(rows, found), about, (points[0], points[1]))


def _claims(rows: list[Row], found: dict[tuple[str, float], Place]) -> tuple[Claim, ...]:
    by_layer = {r["layer"]: r for r in rows if r["part"] == "correlation"}
    negative = sum(r["Spearman high"] < 0 for r in by_layer.values())
    positive = sum(r["Spearman low"] > 0 for r in by_layer.values())
    at = by_layer[LAYER]
    consistent: Holds = "yes" if negative == len(by_layer) else "no" if positive else "unclear"
    ratio = 0.5
    paper = found[PAPER, ratio]
    turned = paper.sheet.against(found[TURNED, ratio].sheet)
    fastv = paper.sheet.against(found["attention (FastV)", ratio].sheet)
    arms = [place for (name, at), place in found.items() if name.startswith("random") and at == ratio]
    luck = pooled([(arm.sheet, paper.sheet) for arm in arms])
    return (
        Claim(
            "attention and value norm are consistently negatively correlated",
            f"layer {LAYER}: {at['Spearman']:+.2f}; significantly negative in {negative}, positive in {positive} of "
            f"{len(by_layer)} layers (n = {at['n']})",
            consistent,
        ),
        Claim(
            "drop the largest value norms, not the smallest",
            f"largest less smallest, half dropped: {turned}",
            _won(turned),
        ),
        Claim(
            "value norms choose as well as attention does", f"V-norm less FastV, half dropped: {fastv}", _level(fastv)
        ),
        Claim("(control) better than dropping at random", f"V-norm less random, {len(arms)} seeds: {luck}", _won(luck)),
    )


def _won(change: Difference) -> Holds:
    return "unclear" if not change.significant else "yes" if change.value > 0 else "no"


def _level(change: Difference) -> Holds:
    """As good, within two points."""
    return "yes" if change.low > -0.02 else "no" if change.significant and change.value < 0 else "unclear"
