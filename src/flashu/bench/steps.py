"""Kinds of steps, and the arithmetic that composes a whole request from one span of each kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from flashu.plan import LayerPlan, Plan, Step
from flashu.plan.table import Forward, PlanTable

SETUP, PROMPT, ENCODE, DECODE_IMAGE = "setup", "prompt", "encode", "image"
ORIGINAL, ORIGINAL_TOKEN = "original", "original token"
"""Forwards of the original program; the second, of a token behind a cache of its own."""
REUSE, REUSE_AND_PROBE = "reuse", "reuse with probe"
AROUND = frozenset({SETUP, ENCODE, DECODE_IMAGE})
"""Steps that are no forward of the model: their FLOPs and bytes are not counted."""
OTHER = "other"
"""What belongs to no component."""
REPEATED = 3
"""A forward of one token is short: a short run has each kind of it this often."""


@dataclass(frozen=True, slots=True)
class StepKind:
    """What steps of equal cost have in common. ``step``: block, prefill or token, or one of the names above;
    ``pruned``: share of the FFN's neurons; ``dropped``: share of the visual tokens; ``guided``: with guidance branches.
    """

    step: str
    skipped: int = 0
    pruned: float = 0.0
    dropped: float = 0.0
    probe: bool = False
    guided: bool = False

    def __str__(self) -> str:
        properties = [
            f"{self.skipped} layers skipped" if self.skipped else "",
            f"{self.pruned:.0%} of the FFN pruned" if self.pruned else "",
            f"{self.dropped:.0%} of the tokens dropped" if self.dropped else "",
            "probe" if self.probe else "",
            "guided" if self.guided else "",
        ]
        return ", ".join([self.step, *filter(None, properties)])


@dataclass(frozen=True, slots=True)
class Span:
    """One step as it was measured: the seconds or FLOPs of each component, and `OTHER`."""

    kind: StepKind
    components: Mapping[str, float]

    @property
    def amount(self) -> float:
        return sum(self.components.values())


Pruned = Mapping[str, float]
"""Share of the neurons that each FFN a plan can name leaves out."""


def kind_of(step: Step, plan: Plan, pruned: Pruned) -> StepKind:
    """The kind of one forward."""
    layers, guided, probe = plan.layers, len(plan.branches) > 1, plan.probe != "off"
    reused = plan.features == "reuse"
    if reused and not probe:
        return StepKind(REUSE, guided=guided)
    name = REUSE_AND_PROBE if reused else step.kind
    dropped = sum(route.ratio for route in layers.drops)
    return StepKind(name, len(layers.skip), pruned.get(layers.ffn, 0.0), dropped, probe, guided)


def prompt_kind(layers: LayerPlan, guided: bool, pruned: Pruned) -> StepKind:
    """The kind of the forward over the prompts under a layer plan."""
    return StepKind(PROMPT, len(layers.skip), pruned.get(layers.ffn, 0.0), guided=guided)


def count_kinds(table: PlanTable, pruned: Pruned) -> Counter[StepKind]:
    """How often each kind occurs in a whole request."""
    counts = Counter(kind_of(forward.step, forward.plan, pruned) for forward in table.forwards)
    return counts + Counter(prompt_kind(prompt.layers, prompt.rows > 1, pruned) for prompt in table.prompts)


def shortest_run(forwards: Sequence[Forward], pruned: Pruned, known: Container[StepKind] = ()) -> list[Plan]:
    """The plans of the shortest run with every kind of the ``forwards`` but the ``known``, in order."""
    first: dict[StepKind, Forward] = {}
    for forward in forwards:
        first.setdefault(kind_of(forward.step, forward.plan, pruned), forward)
    chosen = [forward for kind, forward in first.items() if kind not in known]
    if chosen and (chosen[0].step.kind == "token" or chosen[0].plan.features == "reuse"):
        chosen.insert(0, forwards[0])  # nothing can be reused or continued before a first forward
    return [forward.plan for forward in chosen for _ in range(REPEATED if forward.step.kind == "token" else 1)]


def means(spans: Iterable[Span]) -> dict[StepKind, float]:
    """Mean amount of each kind."""
    amounts: dict[StepKind, list[float]] = {}
    for span in spans:
        amounts.setdefault(span.kind, []).append(span.amount)
    return {kind: fmean(values) for kind, values in amounts.items()}


def compose(spans: Sequence[Span], counts: Mapping[StepKind, int]) -> float:
    """The amount of a run of ``counts``, from at least one span of each kind."""
    each = means(spans)
    return sum(count * each[kind] for kind, count in counts.items())


def compose_components(spans: Sequence[Span], counts: Mapping[StepKind, int]) -> dict[str, float]:
    """The same by component."""
    total: dict[str, float] = {}
    for kind, count in counts.items():
        same = [span for span in spans if span.kind == kind]
        for span in same:
            for name, amount in span.components.items():
                total[name] = total.get(name, 0.0) + amount * count / len(same)
    return total
