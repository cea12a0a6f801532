"""The table `flashu.plan.explain` fills: one row per run of equal forwards, totals, and the exact recipe beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import groupby
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from flashu.plan.plan import FULL, LayerPlan, Plan, Step, Task

WIDTH = 120
"""Columns of a table as a string."""


@dataclass(frozen=True, slots=True)
class Forward:
    """One forward. ``tokens`` x ``rows`` go through the decoder (0: none do) after ``past`` earlier ones (as the
    last layer holds them).

    ``neurons``: width of the FFN. ``t``: flow times before and after. ``kept_tokens``: left after token pruning.
    """

    step: Step
    plan: Plan
    rows: int
    tokens: int
    past: int
    flops: int
    neurons: int
    t: tuple[float, float] | None
    kept_tokens: int | None = None

    @property
    def computed(self) -> bool:
        """Whether the decoder runs at all."""
        return self.tokens > 0

    def same(self) -> tuple[Any, ...]:
        """Equal for forwards that share a row of the table."""
        plan = (
            (self.plan.features, self.plan.guidance, self.plan.probe)
            if self.computed
            else ("reuse", self.plan.guidance)
        )
        layers = (len(self.plan.layers.skip), self.plan.layers.ffn, self.plan.layers.routes) if self.computed else ()
        return (self.step.kind, plan, layers, self.rows, self.tokens)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A short pass over the prompts, before forward ``before`` (0-based), under a layer plan not seen until then."""

    before: int
    layers: LayerPlan
    rows: int
    tokens: int
    flops: int


@dataclass(frozen=True, slots=True)
class Totals:
    """``decoder_passes``: forwards that go through the decoder. ``prompt_passes``: the prompts' own short ones."""

    forwards: int
    decoder_passes: int
    prompt_passes: int
    flops: int

    @classmethod
    def of(cls, forwards: Sequence[Forward], prompts: Sequence[Prompt]) -> Totals:
        flops = sum(f.flops for f in forwards) + sum(p.flops for p in prompts)
        return cls(len(forwards), sum(f.computed for f in forwards), len(prompts), flops)

    def to_dict(self) -> dict[str, Any]:
        return {
            "forwards": self.forwards,
            "decoder_passes": self.decoder_passes,
            "prompt_passes": self.prompt_passes,
            "tflops": self.flops / 1e12,
        }


@dataclass(frozen=True)
class PlanTable:
    """What a request would compute. ``exact``: totals of the same model without any method at its own forwards."""

    model: str
    recipe: str
    task: Task
    num_layers: int
    forwards: tuple[Forward, ...]
    prompts: tuple[Prompt, ...]
    exact: Totals

    @property
    def totals(self) -> Totals:
        return Totals.of(self.forwards, self.prompts)

    @property
    def ratio(self) -> float:
        """How many times fewer FLOPs than the exact recipe."""
        return self.exact.flops / self.totals.flops

    def rows(self) -> list[dict[str, Any]]:
        """Equal consecutive forwards merged; ``gflops`` is the mean of one of them."""
        grouped = [list(group) for _, group in groupby(self.forwards, Forward.same)]
        return [self._row(group) for group in grouped]

    def _row(self, group: list[Forward]) -> dict[str, Any]:
        one, last = group[0], group[-1]
        plan = one.plan
        drawing = self.task == "generation"
        return {
            "kind": one.step.kind,
            "first": one.step.index + 1,
            "last": last.step.index + 1,
            "t": None if one.t is None or last.t is None else [one.t[0], last.t[1]],
            "layers": self.num_layers - len(plan.layers.skip) if one.computed else 0,
            "probe": plan.probe != "off",
            "ffn": plan.layers.ffn if one.computed else None,
            "neurons": one.neurons if one.computed else None,
            "head": None if not drawing else plan.features,
            "guidance": plan.guidance,
            "tokens": one.tokens,
            "kept_tokens": one.kept_tokens,
            "rows": one.rows,
            "gflops": sum(f.flops for f in group) / len(group) / 1e9,
        }

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "recipe": self.recipe,
            "task": self.task,
            "num_layers": self.num_layers,
            "rows": self.rows(),
            "prompts": [
                {"before": p.before + 1, "rows": p.rows, "tokens": p.tokens, "gflops": p.flops / 1e9}
                for p in self.prompts
            ],
            "totals": self.totals.to_dict(),
            "exact": self.exact.to_dict(),
            "flops_ratio": self.ratio,
        }

    def __str__(self) -> str:
        console = Console(width=WIDTH, color_system=None, file=StringIO())
        console.print(self)
        return console.file.getvalue().rstrip()  # type: ignore[attr-defined]

    def __rich__(self) -> RenderableType:
        drawing = self.task == "generation"
        table = Table(
            title=f"{self.task} with {self.recipe} on {self.model}", title_justify="left", box=box.SIMPLE_HEAD
        )
        timed = all(forward.t is not None for forward in self.forwards)
        shown = ["step", *(["t"] if timed else []), "layers", "FFN", *(["head", "guidance"] if drawing else [])]
        for name in shown:
            table.add_column(name, no_wrap=True)
        for name in ("tokens", "rows", "GFLOPs"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in self.rows():
            middle = [_layers(row, self.num_layers), _ffn(row)]
            if timed:
                middle.insert(0, "{:.2f}-{:.2f}".format(*row["t"]))
            if drawing:
                middle += [row["head"], _number(row["guidance"])]
            cells = [_step(row), *middle, _tokens(row), str(row["rows"]), _number(row["gflops"])]
            table.add_row(*cells, style="" if row["layers"] else "dim")
        return Group(table, Text(self._summary()))

    def _summary(self) -> str:
        mine, full = self.totals, self.exact
        lines = [
            f"{mine.forwards} forwards, {mine.decoder_passes} through the decoder, {amount(mine.flops)}",
            f"exact: {full.forwards} forwards, {full.decoder_passes} through the decoder, {amount(full.flops)}"
            f" ({self.ratio:.2f} times as many)",
        ]
        if self.prompts:
            each = self.prompts[0]
            share = sum(p.flops for p in self.prompts) / mine.flops
            lines.insert(
                1,
                f"prompts: {len(self.prompts)} short passes of {each.rows} x {each.tokens} tokens, one per layer plan "
                f"({share:.1%} of the FLOPs, included)",
            )
        if any(row["layers"] not in (0, self.num_layers) for row in self.rows()):
            lines.append("which layers are skipped is measured during the run, at the forwards marked *")
        if any(row["ffn"] not in (None, FULL) for row in self.rows()):
            lines.append(f"FFN: neurons kept of {max(f.neurons for f in self.forwards)}")
        if any(row["kept_tokens"] not in (None, row["tokens"]) for row in self.rows()):
            lines.append("tokens: before > after token pruning")
        if self.task == "understanding":
            lines.append("an answer usually stops before the last of these forwards")
        return "\n".join(lines)


def amount(flops: float) -> str:
    """FLOPs in a unit that suits them."""
    for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9)):
        if flops >= size:
            return f"{flops / size:.3g} {unit}FLOPs"
    return f"{flops / 1e6:.3g} MFLOPs"


def _step(row: dict[str, Any]) -> str:
    if row["kind"] == "prefill":
        return "prefill"
    return str(row["first"]) if row["first"] == row["last"] else f"{row['first']}-{row['last']}"


def _layers(row: dict[str, Any], of: int) -> str:
    if not row["layers"]:
        return "none"
    skipped = of - row["layers"]
    return ("all*" if row["probe"] else "all") if not skipped else f"{row['layers']} of {of}"


def _ffn(row: dict[str, Any]) -> str:
    if not row["layers"]:
        return "none"
    return "full" if row["ffn"] == FULL else f"{row['neurons']}"


def _tokens(row: dict[str, Any]) -> str:
    kept = row["kept_tokens"]
    return f"{row['tokens']}>{kept}" if kept is not None and kept != row["tokens"] else str(row["tokens"])


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"
