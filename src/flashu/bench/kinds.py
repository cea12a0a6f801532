"""Kinds of forward and the arithmetic that composes a run from one measurement of each kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from flashu.plan import FULL, LayerPlan, Plan

SETUP, PROMPT, ORIGINAL, ENCODE, DECODE_IMAGE = "setup", "prompt", "original", "encode", "image"


@dataclass(frozen=True, slots=True)
class Kind:
    """What forwards of equal cost have in common. ``step``: denoise, reuse, prefill, decode, or one of the above."""

    step: str
    skipped: int = 0
    ffn: str = FULL
    routed: bool = False
    probe: bool = False
    guided: bool = False

    def __str__(self) -> str:
        marks = [
            f"{self.skipped} layers skipped" if self.skipped else "",
            "" if self.ffn == FULL else "pruned FFN",
            "tokens pruned" if self.routed else "",
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


def kind_of(plan: Plan, step: str) -> Kind:
    """The kind of one forward; ``step``: the step's kind."""
    guided = plan.guidance is not None
    probe = plan.probe != "off"
    if plan.head == "reuse" and not probe:
        return Kind("reuse", guided=guided)
    name = "reuse with probe" if plan.head == "reuse" else step
    return Kind(name, len(plan.layers.skip), plan.layers.ffn, bool(plan.layers.routes), probe, guided)


def prompt_kind(layers: LayerPlan, guided: bool) -> Kind:
    """The kind of the prompts' short pass under a layer plan."""
    return Kind(PROMPT, len(layers.skip), layers.ffn, guided=guided)


def script(plans: Sequence[tuple[str, Plan]], each: int = 1) -> list[Plan]:
    """The shortest run that meets every kind of forward in ``plans`` (step kind, plan): one of each, in order, each
    ``each`` times."""
    first: dict[Kind, Plan] = {}
    for step, plan in plans:
        first.setdefault(kind_of(plan, step), plan)
    # The first forward of an answer is its prefill, which can be met only once.
    return [plan for n, plan in enumerate(first.values()) for _ in range(1 if n == 0 else each)]


def tally(plans: Iterable[tuple[str, Plan]], prompts: bool) -> Counter[Kind]:
    """How often each kind occurs in a run; ``prompts``: counting a short pass per distinct layer plan."""
    counts: Counter[Kind] = Counter()
    passed = set()
    for step, plan in plans:
        kind = kind_of(plan, step)
        counts[kind] += 1
        prefix = (plan.layers, plan.guidance is not None)
        if prompts and kind.step != "reuse" and prefix not in passed:
            passed.add(prefix)
            counts[prompt_kind(*prefix)] += 1
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
    """The same by component; what no component claims is "other"."""
    total: dict[str, float] = {}
    for kind, count in counts.items():
        same = [piece for piece in pieces if piece.kind == kind]
        for piece in same:
            claimed = 0.0
            for name, amount in piece.parts.items():
                total[name] = total.get(name, 0.0) + amount * count / len(same)
                claimed += amount
            total["other"] = total.get("other", 0.0) + (piece.amount - claimed) * count / len(same)
    return total
