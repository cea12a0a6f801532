"""Figure 1 and Eq. 1: are there neurons for one task only, and do task-own masks prune better than others?

Eq. 1 scores neuron j of a layer by the error of the layer's output when the neuron is zeroed, E ||y - y_j||^2. With
y = W a, zeroing a_j takes a_j w_j from y (w_j: column j of W; attention, residual and norms come before or are added
unchanged), so the error is a_j^2 ||w_j||^2 for every token, and exactly

    E_j = E[a_j^2] ||w_j||^2.

One pass that sums squares gives all neurons at once; no neuron has to be zeroed (a test zeroes them all).
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from flashu.errors import FlashUError
from flashu.evaluation.score_table import pooled
from flashu.inference.calibrate.attention import spearman
from flashu.inference.calibrate.calibration import Calibration
from flashu.inference.calibrate.importance import UNSEEN
from flashu.inference.engine import Engine
from flashu.plan import TASKS, Task
from flashu.plan.methods import FFNPrune
from flashu.plan.recipe import Recipe, exact
from flashu.studies.lab import figures
from flashu.studies.lab.cases import Case
from flashu.studies.lab.compare import compare
from flashu.studies.lab.inner import SecondMoments, observe
from flashu.studies.lab.lab import Lab
from flashu.studies.lab.result import Claim, Result, Row, holds

CRITICAL = 0.2
"""Share of a layer's neurons, those with the largest error, that count as critical for a task."""
RATIOS = (0.6, 0.4, 0.2, 0.8)
ROLES = ("generation only", "understanding only", "shared", "neither")


def errors(engine: Engine, task: Task, samples: int) -> Tensor:
    """Eq. 1 for a task over so many requests of the full model [FFNs, neurons]."""
    observer = SecondMoments()
    observe(engine, task, samples, observer)
    return observer.errors(engine.model)


def roles(generation: Tensor, understanding: Tensor) -> Tensor:
    """Role of every neuron [FFNs, neurons], an index into `ROLES`: critical for which tasks."""
    count = max(1, int(generation.shape[1] * CRITICAL))
    top = [
        torch.zeros_like(e, dtype=torch.bool).scatter(1, e.topk(count).indices, True)
        for e in (generation, understanding)
    ]
    return torch.where(top[0] & top[1], 2, torch.where(top[0], 0, torch.where(top[1], 1, 3)))


def with_masks(lab: Lab, generation: Tensor, understanding: Tensor) -> Calibration:
    """The lab's calibration with the masks of the experiment: both tasks' (Eq. 2), their mean after scaling every
    layer to sum one, and random ones."""
    known = lab.calibration
    scaled = [known.scores[task] / known.scores[task].sum(1, keepdim=True) for task in TASKS]
    known = known.with_scores("shared", scaled[0] + scaled[1], {"from": "both tasks"})
    for task, scores in (("generation", generation), ("understanding", understanding)):
        known = known.with_scores(f"{task} by Eq. 1", scores, {"samples": lab.size.samples})
    for k in range(lab.size.seeds):
        noise = torch.rand(generation.shape, generator=torch.Generator().manual_seed(1000 + k))
        known = known.with_scores(f"random {k}", noise, {"seed": 1000 + k})
    return known


def specialization(lab: Lab) -> Result:
    """The scatter and the shares, of FFNs that serve both tasks, and the experiment: each task pruned by its own mask,
    the other's, a shared one and random ones."""
    found = [errors(lab.engine, task, lab.size.samples) for task in TASKS]
    both = torch.stack([(error != UNSEEN).all(1) for error in found]).all(0)
    if not both.any():
        raise FlashUError("no FFN of this model serves both tasks: each has experts of its own")
    generation, understanding = (error[both] for error in found)
    kinds = roles(generation, understanding)
    masks = {role: kinds == k for k, role in enumerate(ROLES)}
    shares = {role: float(mask.float().mean()) for role, mask in masks.items()}
    correlations = [spearman(g, u) for g, u in zip(generation, understanding, strict=True)]
    rows: list[Row] = [{"part": "neurons", "mask": role, "share": share} for role, share in shares.items()]
    claims = [
        Claim(
            "only a small subset of neurons is important for both tasks",
            f"of a layer's top {CRITICAL:.0%} for each task, {shares['shared'] / CRITICAL:.0%} are shared "
            f"({CRITICAL:.0%} by chance); rank correlation of the errors {sum(correlations) / len(correlations):+.2f}",
            holds(shares["shared"] < CRITICAL / 3, shares["shared"] > CRITICAL / 2),
        )
    ]
    known, vanilla = with_masks(lab, *found), {}
    for task in TASKS:
        vanilla[task], more, claim = experiment(lab, task, known)
        rows += more
        claims.append(claim)
    about = lab.about(
        vanilla=vanilla,
        samples=lab.size.samples,
        images=len(lab.dpg.texts),
        questions=len(lab.und.items),
        steps=lab.size.mask_steps or lab.steps,
        rank_correlation=correlations,
    )
    paint = partial(figures.specialization, (generation, understanding), masks)
    return Result("Figure 1: parameter specialization", rows, claims, about, paint, 4.8)


def experiment(lab: Lab, task: Task, known: Calibration) -> tuple[float, list[Row], Claim]:
    """(vanilla score, rows, claim) of pruning one task with every mask, in all forwards."""
    other = next(t for t in TASKS if t != task)
    random = [f"random {k}" for k in range(lab.size.seeds)]
    masks = {"own": task, "other task's": other, "shared": "shared", "own by Eq. 1": f"{task} by Eq. 1"}
    masks |= {name: name for name in random}
    ratios, steps = sorted(RATIOS[: max(2, lab.size.points // 2)]), lab.size.mask_steps
    cases = [Case("vanilla", exact(), steps)]
    for ratio in ratios:
        for mask, scores in masks.items():
            recipe = Recipe((FFNPrune(task, ratio, 0.0, scores),), f"{mask} {ratio:g}")
            cells = {"part": task, "mask": mask, "ratio": ratio}
            cases.append(Case(recipe.name, recipe, steps, known, cells=cells))
    base, *outcomes = compare(lab, lab.dpg if task == "generation" else lab.und, cases, timed=False)
    by = {(o.case.cells["mask"], o.case.cells["ratio"]): o.scores for o in outcomes}
    less = {
        name: pooled([(by[mask, ratio], by["own", ratio]) for ratio in ratios for mask in against])
        for name, against in (("other task's", ["other task's"]), ("shared", ["shared"]), ("random", random))
    }
    theirs = less["other task's"]
    claim = Claim(
        f"{task} is best pruned with its own mask",
        "own mask less " + "; ".join(f"{name}: {change}" for name, change in less.items()),
        holds(theirs.significant and theirs.value > 0, theirs.high < 0.01),
    )
    return base.scores.overall.value, [o.row("Overall") for o in outcomes], claim
