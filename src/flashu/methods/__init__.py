"""The methods, one file each. Adding one: its file, a line here, a row in docs/methods.md, a test recipe."""

from flashu.methods.base import Method
from flashu.methods.ffn_prune import FFNPrune
from flashu.methods.guidance import AdaptiveGuidance
from flashu.methods.head_cache import HeadCache
from flashu.methods.layer_skip import LayerSkip
from flashu.methods.token_prune import TokenPrune

METHODS: dict[str, type[Method]] = {m.name: m for m in (FFNPrune, LayerSkip, AdaptiveGuidance, HeadCache, TokenPrune)}

__all__ = ["METHODS", "AdaptiveGuidance", "FFNPrune", "HeadCache", "LayerSkip", "Method", "TokenPrune"]
