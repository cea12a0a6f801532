"""The one list of recipes that tests run: every method alone and every pair, for both tasks, fit for a tiny model."""

from __future__ import annotations

from itertools import combinations

from flashu import Recipe
from flashu.plan.methods import (
    AdaptiveGuidance,
    ChangeCache,
    FewerSteps,
    FFNPrune,
    GuidanceInterval,
    HeadCache,
    LayerSkip,
    Method,
    SkipSchedule,
    TaylorCache,
    TaylorSeer,
    TokenPrune,
    UnconditionalReuse,
    UniMoD,
)

GENERATION: dict[str, Method] = {
    "ffn_prune": FFNPrune("generation", 0.25, 0.3),
    "layer_skip": LayerSkip("generation", 0.34, 4, 0.3),
    "head_cache": HeadCache("generation", 3, 0.3),
    "adaptive_guidance": AdaptiveGuidance("generation"),
}
UNDERSTANDING: dict[str, Method] = {
    "ffn_prune": FFNPrune("understanding", 0.25, 0.3),
    "layer_skip": LayerSkip("understanding", 0.34, 3, 0.3),
    "token_prune": TokenPrune("understanding", 2, 0.5),
}
BASELINES: tuple[Method, ...] = (
    FewerSteps("generation", 0.6),
    GuidanceInterval("generation", 0.2, 0.7),
    UnconditionalReuse("generation", 3, 0.2),
    TaylorCache("generation", 3, 2, 0.2),
    TaylorSeer("generation", 2, 3, 2),
    ChangeCache("generation", 0.2, 0.2),
    SkipSchedule("generation", 9, (0, 1, 3, 6)),
)
TRAINED: tuple[Method, ...] = (UniMoD("understanding", ((3, 0.5), (5, 0.8))),)


def subsets(methods: dict[str, Method]) -> dict[str, Recipe]:
    """Every method alone, every pair, and all of them."""
    names = [*((n,) for n in methods), *combinations(methods, 2), tuple(methods)]
    return {"+".join(group): Recipe(tuple(methods[n] for n in group), "+".join(group)) for group in names}
