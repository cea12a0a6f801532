"""Figures 2 and 4: how alike a layer's input and output are, by layer, step and kind of token, for both tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from flashu.plan import TASKS
from flashu.runtime.tokens import TEXT, Tokens
from flashu.studies.lab.lab import Lab
from flashu.studies.lab.result import COLOURS, Claim, Result, Row
from flashu.studies.lab.workload import watch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Key = tuple[str, int, str, int]
"""(task, forward, kind of token, layer)."""


class Alike:
    """Observer of the mean cosine similarity of each layer's input and output by kind of token.

    The kinds: text, time (the token that opens the image block),
    image, and new (a token being decoded); the last token of a prefill, which Eq. 7 looks at, is counted as last too.
    """

    def __init__(self, task: str) -> None:
        self.task = task
        self.forward = 0
        self.sums: dict[Key, float] = {}
        self.counts: dict[Key, int] = {}
        self._input: Tensor | None = None

    def at(self, forward: int) -> None:
        """The forward that comes next."""
        self.forward = forward

    def __call__(self, layer: int, name: str, value: Tensor, tokens: Tokens) -> None:
        if name == "input":
            self._input = value
        elif name == "output":
            assert self._input is not None
            alike = F.cosine_similarity(self._input.float(), value.float(), dim=-1).cpu()
            for kind, where in self._kinds(tokens).items():
                if bool(where.any()):
                    key = (self.task, self.forward, kind, layer)
                    self.sums[key] = self.sums.get(key, 0.0) + float(alike[where].sum())
                    self.counts[key] = self.counts.get(key, 0) + int(where.sum())

    def _kinds(self, tokens: Tokens) -> dict[str, Tensor]:
        if self.task == "understanding" and tokens.shape[1] == 1:
            return {"new": tokens.valid}
        block = (tokens.block != TEXT) & tokens.valid
        last = torch.zeros_like(tokens.valid).scatter(1, tokens.last[:, None], True)
        kinds = {"image": tokens.visual, "time": block & ~tokens.visual, "text": ~block & tokens.valid}
        return kinds | ({"last": last} if self.task == "understanding" else {})

    def rows(self) -> list[Row]:
        return [
            {
                "task": t,
                "forward": f,
                "token": kind,
                "layer": layer + 1,
                "similarity": self.sums[key] / self.counts[key],
            }
            | {"n": self.counts[key]}
            for key in sorted(self.sums)
            for t, f, kind, layer in [key]
        ]


@dataclass(frozen=True)
class Similarity(Result):
    """Generation by step and layer; both tasks by layer and kind of token."""

    title: ClassVar[str] = "Figures 2 and 4: layer similarity"
    size: ClassVar[tuple[float, float]] = (11.0, 4.0)

    def paint(self, figure: Figure) -> None:
        heat, *panels = figure.subplots(1, 3)
        image = [r for r in self.table if r["task"] == "generation" and r["token"] == "image"]
        layers, forwards = max(r["layer"] for r in image), max(r["forward"] for r in image) + 1
        grid = torch.zeros(layers, forwards)
        for r in image:
            grid[r["layer"] - 1, r["forward"]] = r["similarity"]
        shown = heat.imshow(
            grid.numpy(), aspect="auto", origin="lower", cmap="viridis", extent=(0, forwards, 0.5, layers + 0.5)
        )
        figure.colorbar(shown, ax=heat)
        heat.set(xlabel="forward", ylabel="layer")
        heat.set_title("generation, image tokens", loc="left")
        for axes, task in zip(panels, ("generation", "understanding"), strict=True):
            for colour, (kind, curve) in zip(COLOURS, by_layer(self.table, task).items(), strict=False):
                axes.plot(list(curve), list(curve.values()), marker="o", ms=3, color=colour, label=kind)
            axes.set(xlabel="layer", ylabel="cosine of input and output", ylim=(None, 1))
            axes.set_title(task, loc="left")
            axes.legend(frameon=False, fontsize=8)
            axes.spines[["top", "right"]].set_visible(False)


def by_layer(rows: tuple[Row, ...] | list[Row], task: str) -> dict[str, dict[int, float]]:
    """Similarity by kind of token and layer, averaged over forwards."""
    found: dict[str, dict[int, list[float]]] = {}
    for r in rows:
        if r["task"] == task:
            found.setdefault(r["token"], {}).setdefault(r["layer"], []).append(r["similarity"])
    return {kind: {n: sum(v) / len(v) for n, v in curve.items()} for kind, curve in found.items()}


def similarity(lab: Lab) -> Similarity:
    """Observed while the full model draws and answers ``lab.size.samples`` requests."""
    rows: list[Row] = []
    for task in TASKS:
        alike = Alike(task)
        watch(lab.engine, task, lab.size.samples, alike, alike.at)
        rows += alike.rows()
    return Similarity(tuple(rows), _claims(tuple(rows)), lab.about(samples=lab.size.samples))


def _claims(rows: tuple[Row, ...]) -> tuple[Claim, ...]:
    generation, understanding = by_layer(rows, "generation")["image"], by_layer(rows, "understanding")["last"]
    low, high = (f(generation.values()) for f in (min, max))
    middle = sorted(generation)[1:-1]
    drawn, seen = (sum(curve[n] for n in middle) / len(middle) for curve in (generation, understanding))
    return (
        Claim(
            "layers are highly redundant while drawing: inputs and outputs are much alike",
            f"image tokens: cosine {low:.3f} to {high:.3f} over the layers, {drawn:.3f} between the first and the last",
            "yes" if drawn > 0.9 else "no",
        ),
        Claim(
            "key tokens of understanding evolve more with depth than image tokens of drawing do",
            f"between the first and the last layer: last token {seen:.3f}, image tokens while drawing {drawn:.3f}",
            "yes" if seen < drawn else "no",
        ),
    )
