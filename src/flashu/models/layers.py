"""Transformer parts shared by the model families: norms, rotary embedding, attention, decoder layer.

Nothing here knows an acceleration method or a family. A plan reaches a layer through its arguments: ``context`` (what
its tokens attend to) and ``ffn`` (other weights for the feed-forward network).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashu.models.ffn import FFNWeights, GatedFFN, Tap

Rope: TypeAlias = tuple[Tensor, Tensor]
"""(cos, sin), each [B, 1, S, head_dim]; the first half of sin has its sign turned (see `rotate`)."""
KeyValue: TypeAlias = tuple[Tensor, Tensor]
"""(k, v), each [B, kv_heads, T, head_dim]; keys are stored after the rotary embedding."""
Span: TypeAlias = tuple[str, int, int]
"""(expert, start, stop): tokens that use one expert, the same in every row."""


class Slot(NamedTuple):
    """Keys and values with space for those to come: k, v [B, kv_heads, C, head_dim], which the new ones are written
    into at the indices ``at`` [B, S]."""

    k: Tensor
    v: Tensor
    at: Tensor


class Front(NamedTuple):
    """Keys and values of what stands before a block, behind space for the block's own: k, v [B, kv_heads, S + T,
    head_dim], whose first S columns are written anew by each forward. The T others stay as they are."""

    k: Tensor
    v: Tensor


Past: TypeAlias = KeyValue | Slot | Front


class AttentionContext(NamedTuple):
    """What the tokens of one forward attend to in one layer.

    ``rope``: their rotary tables. ``mask``: bool (True = may attend) or additive [B or 1, 1, S, T], None = everything.
    ``mask`` "causal": each sees itself and those before, without a past. ``past``: earlier keys and values. ``spans``:
    which expert each token uses; () = the only one.

    ``query`` [B, Q]: indices of the tokens whose output is wanted, None = all; the mask's rows are theirs, keys and
    values are everyone's. ``gate`` [B, Q, 1]: what the FFN's output of each is multiplied by.
    """

    rope: Rope
    mask: Tensor | Literal["causal"] | None = None
    past: Past | None = None
    spans: tuple[Span, ...] = ()
    query: Tensor | None = None
    gate: Tensor | None = None

    def asked(self, x: Tensor) -> Tensor:
        """x [B, S, ...] of the tokens whose output is wanted."""
        return x if self.query is None else tokens_at(x, self.query)

    @property
    def asked_rope(self) -> Rope:
        return self.rope if self.query is None else rope_at(self.rope, self.query)

    @property
    def asked_spans(self) -> tuple[Span, ...]:
        """Spans of the tokens whose output is wanted; some of the tokens are picked where there is one expert only."""
        return self.spans if self.query is None else tuple((e, 0, self.query.shape[1]) for e, _, _ in self.spans)

    def gated(self, y: Tensor) -> Tensor:
        """The FFN's output y [B, Q, D], weighted."""
        return y if self.gate is None else y * self.gate.to(y.dtype)


def tokens_at(x: Tensor, index: Tensor) -> Tensor:
    """x [B, S, D] at index [B, K] -> [B, K, D]."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def rope_at(rope: Rope, index: Tensor) -> Rope:
    """Rotary tables of the tokens at index [B, K]."""
    at = index[:, None, :, None]

    def pick(table: Tensor) -> Tensor:
        return table.expand(len(index), -1, -1, -1).gather(2, at.expand(-1, -1, -1, table.shape[-1]))

    return pick(rope[0]), pick(rope[1])


class RMSNorm(nn.Module):
    """x / rms(x) in fp32, cast back, then times the weight in the working dtype."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        # Without a weight the fused norm ends in the working dtype, where the original multiplies by its own.
        return self.weight * F.rms_norm(x, x.shape[-1:], None, self.eps)


class RotaryEmbedding(nn.Module):
    """Half-split rotary frequencies as a non-persistent buffer, optionally with Llama-3 length scaling.

    Casting the model rounds the frequencies too, as in the original program, unless they are kept ``exact``.
    """

    inv_freq: Tensor
    exact = False

    def __init__(self, head_dim: int, theta: float, scaling: dict[str, float] | None = None) -> None:
        super().__init__()
        inv_freq = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim)
        if scaling is not None:
            inv_freq = llama3_scaled(inv_freq, **scaling)
        self.register_buffer("inv_freq", inv_freq, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RotaryEmbedding:
        before = self.inv_freq
        super()._apply(fn, recurse)
        if self.exact and self.inv_freq.dtype != before.dtype:
            self.inv_freq = before.to(self.inv_freq.device)
        return self

    def forward(self, pos_BS: Tensor) -> Rope:
        angles = pos_BS[:, None, :, None].float() * self.inv_freq.float()
        cos, sin = angles.cos(), angles.sin()
        return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def llama3_scaled(inv_freq: Tensor, *, factor: float, low: float, high: float, original_length: float) -> Tensor:
    """Slow frequencies are divided by ``factor``, fast ones kept, those between blended linearly."""
    wavelength = 2 * math.pi / inv_freq
    kept = ((original_length / wavelength - low) / (high - low)).clamp(0, 1)
    return inv_freq * kept + inv_freq / factor * (1 - kept)


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """Rotary embedding of x [B, H, S, head_dim]: (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin)."""
    cos, sin = rope
    return x * cos.to(x.dtype) + x.roll(x.shape[-1] // 2, dims=-1) * sin.to(x.dtype)


def split_heads(x: Tensor, head_dim: int) -> Tensor:
    """[B, S, H * head_dim] -> [B, H, S, head_dim]."""
    return x.unflatten(-1, (-1, head_dim)).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | Literal["causal"] | None, grouped: bool = False) -> Tensor:
    """Attention of q [B, H, S, d] to k, v [B, H_kv, T, d] -> [B, S, H*d].

    ``mask`` is bool (True = may attend) or additive, broadcastable to [B, H, S, T]; None = everything is visible;
    "causal" = each query sees the keys up to its own. ``grouped``: each kv head serves H / H_kv consecutive query
    heads.
    """
    if isinstance(mask, str):
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        return y.transpose(1, 2).flatten(2)
    if grouped and q.shape[2] == 1:
        # The one query's heads that share keys are rows of one product: some kernels are slow at the same in heads.
        rows = q.view(len(q), k.shape[1], -1, q.shape[3])
        return F.scaled_dot_product_attention(rows, k, v, attn_mask=mask).view(len(q), 1, -1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped).transpose(1, 2).flatten(2)


def appended(k: Tensor, v: Tensor, past: Past | None) -> KeyValue:
    """All keys and values after k, v [B, kv_heads, S, head_dim] have joined ``past``."""
    if past is None:
        return k, v
    if isinstance(past, Slot):
        at = past.at[:, None, :, None].expand_as(k)
        return past.k.scatter_(2, at, k), past.v.scatter_(2, at, v)
    if isinstance(past, Front):
        past.k[:, :, : k.shape[2]] = k
        past.v[:, :, : v.shape[2]] = v
        return past.k, past.v
    return torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions; per-head q/k RMSNorm when ``qk_norm_eps`` is given."""

    def __init__(
        self,
        hidden: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        rotary: RotaryEmbedding,
        *,
        qkv_bias: bool,
        qk_norm_eps: float | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.grouped = heads != kv_heads
        self.q_proj = nn.Linear(hidden, heads * head_dim, bias=qkv_bias)
        self.k_proj = nn.Linear(hidden, kv_heads * head_dim, bias=qkv_bias)
        self.v_proj = nn.Linear(hidden, kv_heads * head_dim, bias=qkv_bias)
        self.o_proj = nn.Linear(heads * head_dim, hidden, bias=False)
        self.q_norm = RMSNorm(head_dim, qk_norm_eps) if qk_norm_eps is not None else None
        self.k_norm = RMSNorm(head_dim, qk_norm_eps) if qk_norm_eps is not None else None
        self.rotary_emb = rotary

    def keys_values(self, x: Tensor, context: AttentionContext) -> KeyValue:
        """Keys and values of x [B, S, D] behind those of the past."""
        k, v = (split_heads(proj(x), self.head_dim) for proj in (self.k_proj, self.v_proj))
        if self.k_norm is not None:
            k = self.k_norm(k)
        return appended(rotate(k, context.rope), v, context.past)

    def forward(self, x: Tensor, context: AttentionContext, tap: Tap | None = None) -> tuple[Tensor, KeyValue]:
        q = split_heads(self.q_proj(context.asked(x)), self.head_dim)
        if self.q_norm is not None:
            q = self.q_norm(q)
        q = rotate(q, context.asked_rope)
        k, v = self.keys_values(x, context)
        if tap is not None:
            tap("query", q)
            tap("key", k)
            tap("value", v)
        return self.o_proj(attend(q, k, v, context.mask, self.grouped)), (k, v)


class DecoderLayer(nn.Module):
    """Pre-norm decoder layer (Qwen2 form), one expert."""

    def __init__(self, attention: Attention, hidden: int, intermediate: int, eps: float) -> None:
        super().__init__()
        self.self_attn = attention
        self.mlp = GatedFFN(hidden, intermediate)
        self.input_layernorm = RMSNorm(hidden, eps)
        self.post_attention_layernorm = RMSNorm(hidden, eps)

    def forward(
        self,
        x: Tensor,
        context: AttentionContext,
        ffn: Mapping[str, FFNWeights] | None = None,
        tap: Tap | None = None,
    ) -> tuple[Tensor, KeyValue]:
        """x [B, S, D] -> its output and all keys and values, past and new. ``ffn``: weights by expert name, {} or None
        = its own."""
        attended, kv = self.self_attn(self.input_layernorm(x), context, tap)
        x = context.asked(x) + attended
        weights = next(iter(ffn.values())) if ffn else None
        return x + context.gated(self.mlp(self.post_attention_layernorm(x), weights, tap)), kv

    def normed(self, x: Tensor, spans: tuple[Span, ...] = ()) -> Tensor:
        """x as the attention reads it, which is what a router reads."""
        return self.input_layernorm(x)

    def keys_values(self, x: Tensor, context: AttentionContext) -> KeyValue:
        """What a skipped layer still adds to a cache: its keys and values of x."""
        return self.self_attn.keys_values(self.input_layernorm(x), context)
