"""Figure 1 and Eq. 1: are there neurons for one task only, and do task-own masks prune better than others?

Eq. 1 scores neuron j of a layer by the error of the layer's output when the neuron is zeroed, E ||y - y_j||^2. With
y = W a and a = silu(gate x) * up x, zeroing a_j takes a_j w_j from y (w_j: column j of W; attention, residual and
norms come before or are added unchanged), so the error is a_j^2 ||w_j||^2 for every token, and exactly

    E_j = E[a_j^2] ||w_j||^2.

One pass that sums squares gives all neurons at once; no neuron has to be zeroed (a test zeroes them all).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from flashu.evaluation.score_table import pooled
from flashu.inference.calibrate.attention import spearman
from flashu.inference.calibrate.calibration import Calibration
from flashu.inference.calibrate.importance import FFNNorms
from flashu.models.protocol import UnifiedModel
from flashu.plan import TASKS, Task
from flashu.plan.methods import FFNPrune
from flashu.plan.recipe import Recipe, exact
from flashu.runtime.tokens import Tokens
from flashu.studies.lab.contest import Contender, answering, drawing
from flashu.studies.lab.lab import Lab
from flashu.studies.lab.result import COLOURS, FAINT, INK, Claim, Result, Row, lines
from flashu.studies.lab.workload import watch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CRITICAL = 0.2
"""Share of a layer's neurons, those with the largest error, that count as critical for a task."""
RATIOS = (0.6, 0.4, 0.2, 0.8)
ROLES = ("generation only", "understanding only", "shared", "neither")


class Moments(FFNNorms):
    """Observer of E[a_j^2] over all real tokens."""

    def __init__(self, num_layers: int) -> None:
        super().__init__(num_layers)
        self.tokens = [0] * num_layers

    def __call__(self, layer: int, name: str, value: Tensor, tokens: Tokens) -> None:
        super().__call__(layer, name, value, tokens)
        if name == "ffn":
            self.tokens[layer] += int(tokens.valid.sum())

    def second(self) -> Tensor:
        """[layers, neurons]"""
        squares = self.norms().square()
        return squares / torch.tensor(self.tokens, device=squares.device)[:, None]


@torch.no_grad()
def reconstruction_error(model: UnifiedModel, second_moment: Tensor) -> Tensor:
    """Eq. 1 of every neuron [layers, neurons] from E[a_j^2]."""
    reads = torch.stack([layer.mlp.down_proj.weight.float().square().sum(0) for layer in model.layers])
    return second_moment * reads.to(second_moment.device)


def errors(lab: Lab, task: Task) -> Tensor:
    """Eq. 1 for a task over ``lab.size.samples`` requests of the full model [layers, neurons]."""
    model = lab.engine.model
    moments = Moments(model.num_layers)
    watch(lab.engine, task, lab.size.samples, moments)
    return reconstruction_error(model, moments.second()).cpu()


def roles(generation: Tensor, understanding: Tensor) -> Tensor:
    """Role of every neuron [layers, neurons], an index into `ROLES`: critical for which tasks."""
    count = max(1, int(generation.shape[1] * CRITICAL))
    top = [
        torch.zeros_like(e, dtype=torch.bool).scatter(1, e.topk(count).indices, True)
        for e in (generation, understanding)
    ]
    return torch.where(top[0] & top[1], 2, torch.where(top[0], 0, torch.where(top[1], 1, 3)))


def arms(lab: Lab, generation: Tensor, understanding: Tensor) -> Calibration:
    """The lab's calibration with the masks of the experiment: both tasks' (Eq. 2), their mean after scaling every
    layer to sum one, and random ones."""
    known = lab.calibration
    scaled = [known.scores[task] / known.scores[task].sum(1, keepdim=True) for task in TASKS]
    known = known.with_scores("shared", scaled[0] + scaled[1], {"from": "both tasks"})
    obd = {"generation by Eq. 1": generation, "understanding by Eq. 1": understanding}
    for name, scores in obd.items():
        known = known.with_scores(name, scores, {"samples": lab.size.samples})
    for k in range(lab.size.arms):
        noise = torch.rand(generation.shape, generator=torch.Generator().manual_seed(1000 + k))
        known = known.with_scores(f"random {k}", noise, {"seed": 1000 + k})
    return known


@dataclass(frozen=True)
class Specialization(Result):
    """Scatter of the two errors; scores of every mask over the pruning ratio."""

    title: ClassVar[str] = "Figure 1: parameter specialization"
    size: ClassVar[tuple[float, float]] = (11.0, 4.8)

    generation: Tensor
    understanding: Tensor

    def paint(self, figure: Figure) -> None:
        scatter, *panels = figure.subplots(1, 3)
        x, y = (e.clamp_min(1e-12).log10().flatten() for e in (self.generation, self.understanding))
        kinds = roles(self.generation, self.understanding).flatten()
        for k, colour in enumerate((COLOURS[0], COLOURS[1], COLOURS[4], FAINT)):
            here = kinds == k
            scatter.scatter(x[here], y[here], s=3, color=colour, label=ROLES[k], linewidths=0, alpha=0.6)
        scatter.set_xlabel("log10 error if zeroed, generation")
        scatter.set_ylabel("log10 error if zeroed, understanding")
        scatter.legend(frameon=False, markerscale=4, fontsize=7.5)
        for axes, task in zip(panels, TASKS, strict=True):
            mine = [r for r in self.table if r["part"] == task]
            lines(axes, mine, "mask", "ratio")
            axes.axhline(self.about["vanilla"][task], color=INK, lw=0.8, ls=":")
            axes.set_xlabel("share of neurons pruned, all forwards")
            axes.set_ylabel("overall score (dots: vanilla)")
            axes.set_title(task, loc="left")
        for axes in (scatter, *panels):
            axes.spines[["top", "right"]].set_visible(False)


def specialization(lab: Lab) -> Specialization:
    """The scatter, the shares, and the experiment: each task pruned by its own mask, the other's, a shared one and
    random ones."""
    generation, understanding = errors(lab, "generation"), errors(lab, "understanding")
    kinds = roles(generation, understanding)
    shares = {name: float((kinds == k).float().mean()) for k, name in enumerate(ROLES)}
    correlation = sum(map(spearman, generation, understanding)) / len(generation)
    rows: list[Row] = [{"part": "neurons", "mask": name, "share": share} for name, share in shares.items()]
    known = arms(lab, generation, understanding)
    verdicts: list[Claim] = []
    vanilla: dict[str, float] = {}
    for task in TASKS:
        vanilla[task], more, found = experiment(lab, task, known)
        rows += more
        verdicts.append(found)
    chance = CRITICAL**2
    first = Claim(
        "only a small subset of neurons is important for both tasks",
        f"of a layer's top {CRITICAL:.0%} for each task, {shares['shared'] / CRITICAL:.0%} are shared "
        f"({chance / CRITICAL:.0%} by chance); rank correlation of the errors {correlation:+.2f}",
        "yes" if shares["shared"] < CRITICAL / 3 else "no" if shares["shared"] > CRITICAL / 2 else "unclear",
    )
    about = lab.about(
        vanilla=vanilla,
        samples=lab.size.samples,
        images=len(lab.dpg.texts),
        questions=len(lab.und.items),
        **({} if lab.size.mask_steps is None else {"steps": lab.size.mask_steps}),
        rank_correlation=[spearman(g, u) for g, u in zip(generation, understanding, strict=True)],
    )
    return Specialization(tuple(rows), (first, *verdicts), about, generation, understanding)


def experiment(lab: Lab, task: Task, known: Calibration) -> tuple[float, list[Row], Claim]:
    """(vanilla score, rows, verdict) of pruning one task with every mask, in all forwards."""
    other = next(t for t in TASKS if t != task)
    masks = {
        "own": task,
        "other task's": other,
        "shared": "shared",
        "own by Eq. 1": f"{task} by Eq. 1",
        **{f"random {k}": f"random {k}" for k in range(lab.size.arms)},
    }
    ratios = sorted(RATIOS[: max(2, lab.size.points // 2)])
    steps = lab.size.mask_steps
    field = [Contender("vanilla", exact(), steps)]
    labels = [(ratio, mask) for ratio in ratios for mask in masks]
    for ratio, mask in labels:
        prune = FFNPrune(task, ratio, 0.0, masks[mask])
        field.append(Contender(f"{mask} {ratio:g}", Recipe((prune,), f"{mask} {ratio:g}"), steps, known))
    run = drawing(lab, lab.dpg, field, timed=False) if task == "generation" else answering(lab, field, timed=False)
    rows = [
        {"part": task, "mask": mask, "ratio": ratio} | p.row("Overall")
        for (ratio, mask), p in zip(labels, run[1:], strict=True)
    ]
    sheets = {label: p.sheet for label, p in zip(labels, run[1:], strict=True)}
    own_against = {
        mask: pooled([(sheets[r, mask], sheets[r, "own"]) for r in ratios]) for mask in ("other task's", "shared")
    }
    random = pooled([(sheets[r, m], sheets[r, "own"]) for r in ratios for m in masks if m.startswith("random")])
    theirs = own_against["other task's"]
    holds = "yes" if theirs.significant and theirs.value > 0 else "no" if theirs.high < 0.01 else "unclear"
    text = "; ".join(f"{m}: {d}" for m, d in [*own_against.items(), ("random", random)])
    claim = Claim(f"{task} is best pruned with its own mask", f"own mask less {text}", holds)  # type: ignore[arg-type]
    return run[0].sheet.overall.value, rows, claim
