"""The plan: what one forward is to compute. Pure values, no torch.

Methods fold into a `Plan` before each forward; the model is told its `LayerPlan`, the loop is told the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

Task = Literal["generation", "understanding"]
TASKS: tuple[Task, ...] = ("generation", "understanding")
Kind = Literal["prefill", "denoise", "decode"]
Probe = Literal["off", "tokens", "last", "normed"]
"""Whether a forward measures each layer's input-output similarity, and over what:
"tokens" = all tokens it computes (Eq. 6), "last" = the last token of each row (Eq. 7),
"normed" = like "tokens" with the last layer compared after the final norm (the released program)."""
Side = Literal["largest", "smallest"]
Score = Literal["value_norm", "key_norm", "attention", "random", "duplication"]
"""What visual tokens are pruned by; see `runtime.scores`."""
SOLVERS = ("euler", "adams", "heun", "unipc")
"""How velocities become latents; see `flow`."""
FULL = "full"
"""Name of the unpruned FFN."""


@dataclass(frozen=True, slots=True)
class Step:
    """One forward of a run: ``index`` of ``total``, 0-based. Decoding counts the prefill as forward 0."""

    task: Task
    kind: Kind
    index: int
    total: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.total:
            raise ValueError(f"step index {self.index} is outside 0..{self.total - 1}")


@dataclass(frozen=True, slots=True)
class Route:
    """From layer ``layer`` on, drop the share ``ratio`` of the visual tokens, those with the largest or smallest score.

    The score is taken in the layer before, so the first ``layer`` layers see every token. ``seed``: of a random one.
    """

    layer: int
    ratio: float
    score: Score = "value_norm"
    side: Side = "largest"
    seed: int = 0


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """What the decoder is told: layers left out, which FFN weights, where tokens are dropped."""

    skip: frozenset[int] = frozenset()
    ffn: str = FULL
    routes: tuple[Route, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """What the loop is told about one forward.

    ``order``: of the polynomial through kept head features that a reuse continues; 0 takes the latest as they are.
    ``unconditional``: "reuse" leaves the unconditional branch out and keeps its distance to the conditional one.
    """

    layers: LayerPlan = field(default_factory=LayerPlan)
    head: Literal["run", "reuse"] = "run"
    guidance: float | None = None
    probe: Probe = "off"
    order: int = 0
    unconditional: Literal["run", "reuse"] = "run"

    @property
    def branches(self) -> int:
        """Rows computed per image: the conditional one, and under guidance the unconditional one."""
        return 1 if self.guidance is None or self.unconditional == "reuse" else 2

    def possible(self, kept: int, gap: bool) -> Plan:
        """This plan with what cannot be reused computed: features kept of ``kept`` branches (0: none), and ``gap``,
        whether the branches' distance is known."""
        plan = self
        if plan.unconditional == "reuse" and (plan.guidance is None or not gap):
            plan = replace(plan, unconditional="run")
        if plan.head == "reuse" and kept < plan.branches:
            plan = replace(plan, head="run")
        return plan


@dataclass(frozen=True, slots=True)
class Seen:
    """What a run has observed so far: the latest probe's similarity of each layer; ``drift``, the relative change of
    the latents since the head last ran (only for recipes that read it)."""

    similarity: tuple[float, ...] | None = None
    drift: float | None = None


@dataclass(frozen=True, slots=True)
class Room:
    """What a model offers, for methods to check themselves against."""

    name: str
    num_layers: int
    head_blocks: int


def share(amount: float, total: int) -> int:
    """A count given as a number (>= 1) or a fraction of ``total`` (< 1), rounded half up as in the paper's tables."""
    return min(total, int(amount * total + 0.5) if amount < 1 else int(amount))
