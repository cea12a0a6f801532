"""BAGEL's decoder layer: two sets of weights, of which each token uses one, and attention over all tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flashu.models.bagel.config import LLMConfig
from flashu.models.ffn import FFNWeights, GatedFFN, Tap
from flashu.models.layers import (
    AttentionContext,
    KeyValue,
    RMSNorm,
    Span,
    appended,
    attend,
    rotate,
)

UND, GEN = "und", "gen"
"""Text, markers and ViT tokens use the first expert, latent tokens the second."""
SUFFIX = {UND: "", GEN: "_moe_gen"}
"""Of the names of an expert's modules."""


def spans_of(context: AttentionContext, x: Tensor) -> tuple[Span, ...]:
    """Without spans, all tokens are the understanding expert's."""
    return context.spans or ((UND, 0, x.shape[1]),)


def asked_spans(context: AttentionContext, x: Tensor) -> tuple[Span, ...]:
    """The same of the tokens x whose output is wanted."""
    return context.asked_spans or ((UND, 0, x.shape[1]),)


def each(spans: Sequence[Span], x: Tensor, part: Callable[[Span, Tensor], Tensor]) -> Tensor:
    """``part`` of the tokens of every span, joined again."""
    if len(spans) == 1:
        return part(spans[0], x)
    return torch.cat([part(span, x[:, span[1] : span[2]]) for span in spans], dim=1)


class ExpertAttention(nn.Module):
    """Grouped-query attention whose projections and q/k norms are each expert's own."""

    def __init__(self, cfg: LLMConfig, experts: Sequence[str]) -> None:
        super().__init__()
        self.head_dim = cfg.head_dim
        self.grouped = cfg.num_attention_heads != cfg.num_key_value_heads
        wide, narrow = cfg.num_attention_heads * self.head_dim, cfg.num_key_value_heads * self.head_dim
        for expert in experts:
            own = {
                "q_proj": nn.Linear(cfg.hidden_size, wide),
                "k_proj": nn.Linear(cfg.hidden_size, narrow),
                "v_proj": nn.Linear(cfg.hidden_size, narrow),
                "o_proj": nn.Linear(wide, cfg.hidden_size, bias=False),
                "q_norm": RMSNorm(self.head_dim, cfg.rms_norm_eps),
                "k_norm": RMSNorm(self.head_dim, cfg.rms_norm_eps),
            }
            for name, module in own.items():
                self.add_module(name + SUFFIX[expert], module)

    def _heads(self, name: str, spans: Sequence[Span], x: Tensor) -> Tensor:
        """Queries, keys ("q", "k": normed) or values ("v") of normed x: [B, heads, S, head_dim]."""

        def part(span: Span, y: Tensor) -> Tensor:
            suffix = SUFFIX[span[0]]
            own = self._modules[f"{name}_proj{suffix}"](y).unflatten(-1, (-1, self.head_dim))  # type: ignore[misc]
            return own if name == "v" else self._modules[f"{name}_norm{suffix}"](own)  # type: ignore[misc]

        return each(spans, x, part).transpose(1, 2)

    def keys_values(self, x: Tensor, context: AttentionContext) -> KeyValue:
        """Keys and values of normed x [B, S, D] behind those of the past."""
        spans = spans_of(context, x)
        return appended(rotate(self._heads("k", spans, x), context.rope), self._heads("v", spans, x), context.past)

    def forward(self, x: Tensor, context: AttentionContext, tap: Tap | None = None) -> tuple[Tensor, KeyValue]:
        k, v = self.keys_values(x, context)
        x = context.asked(x)
        spans = asked_spans(context, x)
        q = rotate(self._heads("q", spans, x), context.asked_rope)
        if tap is not None:
            for name, value in (("query", q), ("key", k), ("value", v)):
                tap(name, value)
        attended = attend(q, k, v, context.mask, self.grouped)
        return each(spans, attended, lambda span, y: self._modules[f"o_proj{SUFFIX[span[0]]}"](y)), (k, v)  # type: ignore[misc]


class ExpertLayer(nn.Module):
    """Pre-norm decoder layer with a full set of weights per expert."""

    def __init__(self, cfg: LLMConfig, experts: Sequence[str]) -> None:
        super().__init__()
        self.self_attn = ExpertAttention(cfg, experts)
        for expert in experts:
            own = {
                "mlp": GatedFFN(cfg.hidden_size, cfg.intermediate_size),
                "input_layernorm": RMSNorm(cfg.hidden_size, cfg.rms_norm_eps),
                "post_attention_layernorm": RMSNorm(cfg.hidden_size, cfg.rms_norm_eps),
            }
            for name, module in own.items():
                self.add_module(name + SUFFIX[expert], module)

    def ffn(self, expert: str) -> GatedFFN:
        return self._modules["mlp" + SUFFIX[expert]]  # type: ignore[return-value]

    def forward(
        self,
        x: Tensor,
        context: AttentionContext,
        ffn: Mapping[str, FFNWeights] | None = None,
        tap: Tap | None = None,
    ) -> tuple[Tensor, KeyValue]:
        """x [B, S, D] -> its output and all keys and values, past and new. An expert without weights in ``ffn`` uses
        its own."""
        spans = spans_of(context, x)
        attended, kv = self.self_attn(self._normed("input_layernorm", spans, x), context, tap)
        x = context.asked(x) + attended
        spans = asked_spans(context, x)

        def fed(span: Span, y: Tensor) -> Tensor:
            def watch(name: str, value: Any) -> None:
                assert tap is not None
                tap(name, value, span)

            weights = None if ffn is None else ffn.get(span[0])
            return self.ffn(span[0])(y, weights, None if tap is None else watch)

        return x + context.gated(each(spans, self._normed("post_attention_layernorm", spans, x), fed)), kv

    def normed(self, x: Tensor, spans: tuple[Span, ...] = ()) -> Tensor:
        """See `models.protocol.Layer`."""
        return self._normed("input_layernorm", spans or ((UND, 0, x.shape[1]),), x)

    def keys_values(self, x: Tensor, context: AttentionContext) -> KeyValue:
        """What a skipped layer still adds to a cache: its keys and values of x."""
        return self.self_attn.keys_values(self._normed("input_layernorm", spans_of(context, x), x), context)

    def _normed(self, name: str, spans: Sequence[Span], x: Tensor) -> Tensor:
        return each(spans, x, lambda span, y: self._modules[name + SUFFIX[span[0]]](y))  # type: ignore[misc]
