"""The methods, one file each. Adding one: its file, a line here, a row in docs/methods.md, a test recipe."""

from flashu.plan.methods.base import Method
from flashu.plan.methods.change_cache import ChangeCache
from flashu.plan.methods.fewer_steps import FewerSteps
from flashu.plan.methods.ffn_prune import FFNPrune
from flashu.plan.methods.guidance import AdaptiveGuidance
from flashu.plan.methods.guidance_interval import GuidanceInterval
from flashu.plan.methods.head_cache import HeadCache
from flashu.plan.methods.layer_skip import LayerSkip
from flashu.plan.methods.skip_schedule import SkipSchedule
from flashu.plan.methods.taylor_cache import TaylorCache
from flashu.plan.methods.taylor_seer import TaylorSeer
from flashu.plan.methods.token_prune import TokenPrune
from flashu.plan.methods.unconditional_reuse import UnconditionalReuse
from flashu.plan.methods.unimod import UniMoD

FLASHU: tuple[type[Method], ...] = (FFNPrune, LayerSkip, AdaptiveGuidance, HeadCache, TokenPrune)
"""FlashU's."""
BASELINES: tuple[type[Method], ...] = (
    FewerSteps,
    GuidanceInterval,
    UnconditionalReuse,
    TaylorCache,
    TaylorSeer,
    ChangeCache,
    SkipSchedule,
)
"""What FlashU is compared with."""
TRAINED: tuple[type[Method], ...] = (UniMoD,)
"""What a model is trained for."""
METHODS: dict[str, type[Method]] = {m.name: m for m in (*FLASHU, *BASELINES, *TRAINED)}

__all__ = [
    "BASELINES",
    "FLASHU",
    "METHODS",
    "TRAINED",
    "AdaptiveGuidance",
    "ChangeCache",
    "FFNPrune",
    "FewerSteps",
    "GuidanceInterval",
    "HeadCache",
    "LayerSkip",
    "Method",
    "SkipSchedule",
    "TaylorCache",
    "TaylorSeer",
    "TokenPrune",
    "UnconditionalReuse",
    "UniMoD",
]
