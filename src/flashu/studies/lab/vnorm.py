"""Figure 5: attention received against value norm, and V-norm pruning against other choices of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from flashu.evaluation.score_table import pooled
from flashu.inference.calibrate.attention import spearman
from flashu.plan import Score, Side
from flashu.plan.methods import TokenPrune
from flashu.plan.recipe import Recipe
from flashu.studies.lab import figures
from flashu.studies.lab.cases import Case, vanilla
from flashu.studies.lab.compare import Outcome, compare
from flashu.studies.lab.figures import groups
from flashu.studies.lab.inner import AttentionAndNorms, observe
from flashu.studies.lab.lab import Lab
from flashu.studies.lab.result import Claim, Result, Row, better, holds

LAYER = 2
"""Pruned after this layer, as in Table 8."""
RATIOS = (0.5, 0.75, 0.25)
PAPER, SMALLEST, FASTV = "V-norm, largest go (paper)", "V-norm, smallest go", "attention (FastV)"
CHOICES: dict[str, tuple[Score, Side]] = {
    PAPER: ("value_norm", "largest"),
    SMALLEST: ("value_norm", "smallest"),
    FASTV: ("attention", "smallest"),
    "K-norm, largest go": ("key_norm", "largest"),
    "K-norm, smallest go": ("key_norm", "smallest"),
    "duplication (DART)": ("duplication", "largest"),
}


def vnorm(lab: Lab) -> Result:
    """Correlation on ``lab.size.samples`` questions, pruning on the five suites at equal ratios."""
    observer = AttentionAndNorms(lab.engine.model.spec.layers)
    observe(lab.engine, "understanding", lab.size.samples, observer)
    rows: list[Row] = []
    for layer, pairs in enumerate(observer.pairs, 1):
        values = torch.tensor([spearman(attention, norm) for attention, norm in pairs])
        mean, error = float(values.mean()), 1.96 * float(values.std(correction=0)) / len(values) ** 0.5
        rows.append(
            {"part": "correlation", "layer": layer, "Spearman": mean, "Spearman low": mean - error}
            | {"Spearman high": mean + error, "n": len(values)}
        )
    choices = CHOICES | {f"random {k}": ("random", "largest") for k in range(lab.size.seeds)}
    cases = [vanilla()]
    for ratio in sorted(RATIOS[: max(2, lab.size.points // 2)]):
        for name, (score, side) in choices.items():
            prune = TokenPrune(layer=LAYER, ratio=ratio, side=side, score=score, seed=len(cases) - 1)
            recipe = Recipe((prune,), f"{name} {ratio:g}")
            cases.append(Case(name, recipe, cells={"part": "pruning", "ratio": ratio}))
    base, *outcomes = compare(lab, lab.und, cases, timed=False)
    rows += [o.row("Vision", "GQA") for o in outcomes]
    points = tuple(torch.cat(column) for column in zip(*observer.pairs[LAYER - 1], strict=True))
    counts = {"samples": lab.size.samples, "questions": len(lab.und.items)}
    about = lab.about(vanilla=base.scores.overall.value, layer=LAYER, **counts)
    claims = [_correlated(rows), *_claims(outcomes)]
    title = "Figure 5: value norms as a proxy for attention"
    return Result(title, rows, claims, about, partial(figures.vnorm, points), 4.8)


def _correlated(rows: list[Row]) -> Claim:
    layers = groups(rows, "part")["correlation"]
    negative = sum(r["Spearman high"] < 0 for r in layers)
    positive = sum(r["Spearman low"] > 0 for r in layers)
    at = layers[LAYER - 1]
    return Claim(
        "attention and value norm are consistently negatively correlated",
        f"layer {LAYER}: {at['Spearman']:+.2f}; significantly negative in {negative}, positive in {positive} of "
        f"{len(layers)} layers (n = {at['n']})",
        holds(negative == len(layers), positive > 0),
    )


def _claims(outcomes: Sequence[Outcome]) -> list[Claim]:
    scores = {o.label: o.scores for o in outcomes if o.case.cells["ratio"] == 0.5}
    turned, fastv = (scores[PAPER].against(scores[name]) for name in (SMALLEST, FASTV))
    random = [table for name, table in scores.items() if name.startswith("random")]
    control = pooled([(table, scores[PAPER]) for table in random])
    return [
        Claim(
            "drop the largest value norms, not the smallest",
            f"largest less smallest, half dropped: {turned}",
            better(turned),
        ),
        Claim(
            "value norms choose as well as attention does",
            f"V-norm less FastV, half dropped: {fastv}",
            holds(fastv.low > -0.02, fastv.significant and fastv.value < 0),  # as good, within two points
        ),
        Claim(
            "(control) better than dropping at random",
            f"V-norm less random, {len(random)} seeds: {control}",
            better(control),
        ),
    ]
