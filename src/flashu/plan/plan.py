"""The plan: what one forward computes. Pure values, no torch.

Methods fold into a `Plan` before each forward; the decoder gets its `LayerPlan`, the run keeps the rest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

Task = Literal["generation", "understanding"]
TASKS: tuple[Task, ...] = ("generation", "understanding")
Kind = Literal["prefill", "block", "token", "verify"]
"""What a forward computes: a context (prefill), all tokens of an image (block), the next token, or the next token and
drafted ones behind it (verify)."""
Probe = Literal["off", "tokens", "last", "normed"]
"""Whether a forward measures each layer's input-output similarity, and over what:
"tokens" = all tokens it computes (Eq. 6), "last" = the last token of each row (Eq. 7),
"normed" = like "tokens" with the last layer compared after the final norm (the released program)."""
Side = Literal["largest", "smallest"]
Score = Literal["value_norm", "key_norm", "attention", "random", "duplication"]
"""What visual tokens are pruned by; see `runtime.scores`."""
Gate = Literal["none", "ffn", "block"]
"""What the router's weight of a token multiplies in a layer that some tokens bypass: nothing, the FFN's output, or all
that the layer adds."""
GateScale = Literal["p", "2p", "tanh"]
"""That weight: the router's probability p of the token (about 0.5 before training), twice that, or
1 + 0.2 tanh(logit_1 - logit_0), which starts at 1."""
SOLVERS = ("euler", "adams", "heun", "unipc")
"""How velocities become latents; see `inference.samplers.solvers`."""
FULL = "full"
"""Name of the unpruned FFN."""
MAIN = "main"
"""Name of the branch that sees everything; the others are guidance branches."""


@dataclass(frozen=True, slots=True)
class Step:
    """One forward: ``index`` of ``total``, 0-based. An answer counts its prefill as forward 0. ``time``: the flow time
    of a block, None elsewhere."""

    task: Task
    kind: Kind
    index: int
    total: int
    time: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.total:
            raise ValueError(f"step index {self.index} is outside 0..{self.total - 1}")


@dataclass(frozen=True, slots=True)
class Route:
    """Which tokens a layer does not compute.

    ``mode`` "drop": from layer ``layer`` on, drop the share ``ratio`` of the visual tokens, those with the largest or
    smallest score. The score is taken in the layer before, so the first ``layer`` layers see every token. ``seed``: of
    a random one.

    "bypass": layer ``layer`` alone computes the best ceil(``keep`` x tokens of the row so far) tokens by the router
    named ``router`` (None: random ones); the others pass it unchanged and leave it no keys and values. ``force``:
    tokens that come first whatever their router says, "text" = those that are not the image's. A single token that
    comes next runs if its probability is at least ``threshold`` (None: always). ``gate``, ``scale``: what the router's
    weight multiplies, and how large it is.
    """

    layer: int
    ratio: float = 0.0
    score: Score = "value_norm"
    side: Side = "largest"
    seed: int = 0
    mode: Literal["drop", "bypass"] = "drop"
    keep: float = 1.0
    router: str | None = None
    force: Literal["none", "text"] = "none"
    threshold: float | None = 0.5
    gate: Gate = "ffn"
    scale: GateScale = "p"

    def count(self, length: int) -> int:
        """Tokens of a row of ``length`` that the layer of a bypass computes."""
        return min(length, math.ceil(self.keep * length))


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """What the decoder computes: layers left out, which FFN weights, where tokens are dropped or bypass a layer."""

    skip: frozenset[int] = frozenset()
    ffn: str = FULL
    routes: tuple[Route, ...] = ()

    @property
    def drops(self) -> tuple[Route, ...]:
        return tuple(route for route in self.routes if route.mode == "drop")

    @property
    def bypasses(self) -> tuple[Route, ...]:
        return tuple(route for route in self.routes if route.mode == "bypass")


@dataclass(frozen=True, slots=True)
class Draft:
    """Tokens that are proposed before a forward, which verifies them: at most ``length``. ``layers``: the shorter layer
    plan under which the model itself proposes them, None = a drafter of its own does."""

    length: int
    layers: LayerPlan | None = None


@dataclass(frozen=True)
class Plan:
    """What one forward of a run computes.

    ``scales``: guidance scale by branch; a branch without one is not needed. ``reuse``: branches that are left out and
    keep their distance to the main one. ``features``: "reuse" continues the head's earlier features, by a polynomial of
    ``order`` (0 takes the latest as they are). ``differences``: the order up to which this forward's features are also
    kept as finite differences (0: themselves alone), from which reuse then follows by Taylor's series; None: not.
    ``context``: the layer plan of what stands before a block; None = as the model's spec says. ``draft``: what is
    proposed before a forward of kind "verify"; results do not depend on it.
    """

    layers: LayerPlan = field(default_factory=LayerPlan)
    features: Literal["run", "reuse"] = "run"
    scales: Mapping[str, float] = field(default_factory=dict)
    probe: Probe = "off"
    order: int = 0
    differences: int | None = None
    reuse: frozenset[str] = frozenset()
    context: LayerPlan | None = None
    draft: Draft | None = None

    @property
    def branches(self) -> tuple[str, ...]:
        """The branches that are computed, the main one first."""
        return (MAIN, *(name for name in self.scales if name not in self.reuse))

    @property
    def guidance(self) -> float | None:
        """The first guidance scale; None without guidance."""
        return next(iter(self.scales.values()), None)

    def possible(self, features: tuple[str, ...], deltas: frozenset[str]) -> Plan:
        """This plan with what cannot be reused computed: ``features`` are kept of these branches, ``deltas`` (distances
        to the main branch) of those."""
        reuse = self.reuse & deltas & self.scales.keys()
        plan = self if reuse == self.reuse else replace(self, reuse=frozenset(reuse))
        if plan.features == "reuse" and not set(plan.branches) <= set(features):
            plan = replace(plan, features="run")
        return plan


@dataclass(frozen=True, slots=True)
class Observations:
    """What a run has measured so far: the latest probe's similarity of each layer; ``drift``, the relative change of
    the latents since the head last ran (only for recipes that read it)."""

    similarity: tuple[float, ...] | None = None
    drift: float | None = None


def share(amount: float, total: int) -> int:
    """A count given as a number (>= 1) or a fraction of ``total`` (< 1), rounded half up as in the paper's tables."""
    return min(total, int(amount * total + 0.5) if amount < 1 else int(amount))
