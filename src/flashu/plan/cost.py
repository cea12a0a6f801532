"""FLOPs of a forward, from a model's spec alone (multiply-adds count two)."""

from __future__ import annotations

from collections.abc import Mapping

from flashu.plan.plan import FULL, LayerPlan, Plan
from flashu.plan.recipe import Recipe
from flashu.plan.spec import ModelSpec

RELEASED_ALIGNMENT = 64


def keep_count(width: int, ratio: float, multiple: int) -> int:
    """Neurons kept of ``width`` when the share ``ratio`` is pruned, rounded down to a multiple of ``multiple``."""
    ideal = width - int(width * ratio)
    aligned = ideal // multiple * multiple
    return aligned or (multiple if multiple <= width else max(ideal, 1))


def alignment(width: int) -> int:
    """The multiple a kept width is aligned to: 64 as in the released program, 16 for networks too narrow for that."""
    return RELEASED_ALIGNMENT if width >= 1024 else 16


def bank_widths(spec: ModelSpec, recipe: Recipe) -> dict[str, int]:
    """Neurons kept by each FFN bank the recipe needs."""
    width = spec.neurons
    return {m.mask: keep_count(width, m.ratio, alignment(width)) for m in recipe.ffn_prunes()}


def ffn_width(spec: ModelSpec, plan: Plan, widths: Mapping[str, int]) -> int:
    return spec.neurons if plan.layers.ffn == FULL else widths[plan.layers.ffn]


def layer(
    spec: ModelSpec, plan: LayerPlan, i: int, tokens: int, keys: int, widths: Mapping[str, int], *, keep: bool
) -> int:
    """Decoder layer i on one row: ``tokens`` queries over ``keys`` keys. Skipped, it still computes keys and values
    for a context that is kept."""
    if i in plan.skip:
        return spec.keys_values.flops(tokens) if keep else 0
    neurons = spec.neurons if plan.ffn == FULL else widths[plan.ffn]
    return spec.attention.flops(tokens, keys) + spec.ffn(neurons).flops(tokens)


def decoder(
    spec: ModelSpec, plan: LayerPlan, tokens: int, past: int, widths: Mapping[str, int], *, keep: bool = False
) -> int:
    """All layers on one row."""
    return sum(layer(spec, plan, i, tokens, past + tokens, widths, keep=keep) for i in range(spec.layers))
