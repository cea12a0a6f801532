"""Kinds of forward and the arithmetic that composes a run from one measurement of each kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from flashu.plan import LayerPlan, Plan

SETUP, PROMPT, ORIGINAL, ENCODE, DECODE_IMAGE = "setup", "prompt", "original", "encode", "image"
OTHER = "other"
"""What no component claims."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What forwards of equal cost have in common. ``step``: denoise, reuse, prefill, decode, or one of the above;
    ``pruned``: share of the FFN's neurons; ``dropped``: share of the visual tokens."""

    step: str
    skipped: int = 0
    pruned: float = 0.0
    dropped: float = 0.0
    probe: bool = False
    guided: bool = False

    def __str__(self) -> str:
        marks = [
            f"{self.skipped} layers skipped" if self.skipped else "",
            f"{self.pruned:.0%} of the FFN pruned" if self.pruned else "",
            f"{self.dropped:.0%} of the tokens dropped" if self.dropped else "",
            "probe" if self.probe else "",
            "guided" if self.guided else "",
        ]
        return ", ".join([self.step, *filter(None, marks)])


@dataclass(frozen=True, slots=True)
class Piece:
    """One timed (or counted) thing: its amount, and how much of it went into which component."""

    kind: Kind
    amount: float
    parts: Mapping[str, float]


Pruned = Mapping[str, float]
"""Share of the neurons that each FFN a plan can name leaves out."""


def kind_of(plan: Plan, step: str, pruned: Pruned) -> Kind:
    """The kind of one forward; ``step``: the step's kind."""
    guided = plan.guidance is not None
    probe = plan.probe != "off"
    if plan.head == "reuse" and not probe:
        return Kind("reuse", guided=guided)
    name = "reuse with probe" if plan.head == "reuse" else step
    dropped = sum(route.ratio for route in plan.layers.routes)
    return Kind(name, len(plan.layers.skip), pruned.get(plan.layers.ffn, 0.0), dropped, probe, guided)


def prompt_kind(layers: LayerPlan, guided: bool, pruned: Pruned) -> Kind:
    """The kind of the prompts' short pass under a layer plan."""
    return Kind(PROMPT, len(layers.skip), pruned.get(layers.ffn, 0.0), guided=guided)


def script(plans: Sequence[tuple[str, Plan]], pruned: Pruned, known: Container[Kind] = (), each: int = 1) -> list[Plan]:
    """The shortest run that meets every kind of forward in ``plans`` (step kind, plan) but the ``known``: one of each,
    in order, each ``each`` times."""
    first: dict[Kind, Plan] = {}
    for step, plan in plans:
        first.setdefault(kind_of(plan, step, pruned), plan)
    wanted = [(kind, plan) for kind, plan in first.items() if kind not in known]
    if wanted and wanted[0][0].step not in ("denoise", "prefill"):
        # Nothing can be reused or continued before a first forward.
        wanted.insert(0, next(iter(first.items())))
    return [plan for kind, plan in wanted for _ in range(1 if kind.step == "prefill" else each)]


def tally(plans: Iterable[tuple[str, Plan]], pruned: Pruned, prompts: bool) -> Counter[Kind]:
    """How often each kind occurs in a run; ``prompts``: counting a short pass per distinct layer plan."""
    counts: Counter[Kind] = Counter()
    passed = set()
    for step, plan in plans:
        kind = kind_of(plan, step, pruned)
        counts[kind] += 1
        prefix = (plan.layers, plan.guidance is not None)
        if prompts and kind.step != "reuse" and prefix not in passed:
            passed.add(prefix)
            counts[prompt_kind(*prefix, pruned)] += 1
    return counts


def means(pieces: Iterable[Piece]) -> dict[Kind, float]:
    """Mean amount of each kind."""
    found: dict[Kind, list[float]] = {}
    for piece in pieces:
        found.setdefault(piece.kind, []).append(piece.amount)
    return {kind: fmean(values) for kind, values in found.items()}


def compose(pieces: Sequence[Piece], counts: Mapping[Kind, int]) -> float:
    """The amount of a run of ``counts``, from at least one piece of each kind."""
    each = means(pieces)
    return sum(count * each[kind] for kind, count in counts.items())


def components(pieces: Sequence[Piece], counts: Mapping[Kind, int]) -> dict[str, float]:
    """The same by component; `OTHER` beside them."""
    total: dict[str, float] = {}
    for kind, count in counts.items():
        same = [piece for piece in pieces if piece.kind == kind]
        for piece in same:
            claimed = 0.0
            for name, amount in piece.parts.items():
                total[name] = total.get(name, 0.0) + amount * count / len(same)
                claimed += amount
            total[OTHER] = total.get(OTHER, 0.0) + (piece.amount - claimed) * count / len(same)
    return total
