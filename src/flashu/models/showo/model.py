"""Show-o: the architecture and its weights. Module names are the official checkpoint's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashu.models.ffn import FFN, FFNWeights, PlainFFN, Tap
from flashu.models.layers import (
    AttentionContext,
    KeyValue,
    Rope,
    RotaryEmbedding,
    Span,
    appended,
    attend,
    rotate,
    split_heads,
)
from flashu.models.showo.config import LLMConfig, ShowOConfig
from flashu.models.showo.spec import spec_of
from flashu.plan import ModelSpec

Content: TypeAlias = "Tensor | tuple[Tensor, ...]"
"""A segment's: ids [S], embedded tokens [S, h], or several of them in turn."""


class Attention(nn.Module):
    """Attention with a LayerNorm of every head's queries and keys, shared by the heads, before a rotary embedding of
    each head's first channels."""

    def __init__(self, cfg: LLMConfig) -> None:
        super().__init__()
        h, self.head_dim, self.rotary_dim = cfg.hidden_size, cfg.head_dim, cfg.rotary_dim
        self.q_proj, self.k_proj, self.v_proj, self.dense = (nn.Linear(h, h) for _ in range(4))
        self.q_layernorm = nn.LayerNorm(self.head_dim, cfg.layer_norm_eps)
        self.k_layernorm = nn.LayerNorm(self.head_dim, cfg.layer_norm_eps)

    def keys_values(self, x: Tensor, context: AttentionContext) -> KeyValue:
        """Keys and values of normed x [B, S, h] behind those of the past."""
        k = self._rotated(self.k_layernorm(split_heads(self.k_proj(x), self.head_dim)), context.rope)
        return appended(k, split_heads(self.v_proj(x), self.head_dim), context.past)

    def forward(self, x: Tensor, context: AttentionContext, tap: Tap | None = None) -> tuple[Tensor, KeyValue]:
        asked = self.q_layernorm(split_heads(self.q_proj(context.asked(x)), self.head_dim))
        q = self._rotated(asked, context.asked_rope)
        k, v = self.keys_values(x, context)
        if tap is not None:
            tap("query", q)
            tap("key", k)
            tap("value", v)
        return self.dense(attend(q, k, v, context.mask)), (k, v)

    def _rotated(self, x: Tensor, rope: Rope) -> Tensor:
        turned, passed = x.split((self.rotary_dim, self.head_dim - self.rotary_dim), dim=-1)
        return torch.cat((rotate(turned, rope), passed), dim=-1)


class Layer(nn.Module):
    """x + attention(LayerNorm x) + FFN(LayerNorm x): one norm, both parts beside each other."""

    def __init__(self, cfg: LLMConfig) -> None:
        super().__init__()
        self.self_attn = Attention(cfg)
        self.mlp = PlainFFN(cfg.hidden_size, cfg.intermediate_size, "tanh")
        self.input_layernorm = nn.LayerNorm(cfg.hidden_size, cfg.layer_norm_eps)

    def forward(
        self,
        x: Tensor,
        context: AttentionContext,
        ffn: Mapping[str, FFNWeights] | None = None,
        tap: Tap | None = None,
    ) -> tuple[Tensor, KeyValue]:
        """See `models.protocol.Layer`."""
        normed = self.input_layernorm(x)
        attended, kv = self.self_attn(normed, context, tap)
        weights = next(iter(ffn.values())) if ffn else None
        return attended + context.gated(self.mlp(context.asked(normed), weights, tap)) + context.asked(x), kv

    def normed(self, x: Tensor, spans: tuple[Span, ...] = ()) -> Tensor:
        """See `models.protocol.Layer`."""
        return self.input_layernorm(x)

    def keys_values(self, x: Tensor, context: AttentionContext) -> KeyValue:
        return self.self_attn.keys_values(self.input_layernorm(x), context)


class Decoder(nn.Module):
    def __init__(self, cfg: LLMConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(cfg.vocab_size, cfg.hidden_size)
        self.layers = nn.ModuleList(Layer(cfg) for _ in range(cfg.num_hidden_layers))
        self.final_layernorm = nn.LayerNorm(cfg.hidden_size, cfg.layer_norm_eps)
        self.rotary_emb = RotaryEmbedding(cfg.rotary_dim, cfg.rope_theta)
        self.rotary_emb.exact = True  # the original rounds cosines, not frequencies


class CausalLM(nn.Module):
    def __init__(self, cfg: LLMConfig) -> None:
        super().__init__()
        self.model = Decoder(cfg)
        self.lm_head = nn.Linear(cfg.hidden_size, cfg.vocab_size)


class ShowO(nn.Module):
    """One transformer over text and the codes of images, which it draws by masked tokens."""

    name = ""
    quantization: str | None = None
    head = None

    def __init__(self, config: ShowOConfig) -> None:
        super().__init__()
        self.config = config
        h, c = config.llm.hidden_size, config.clip_size
        self.showo = CausalLM(config.llm)
        if c is not None:
            self.mm_projector = nn.Sequential(nn.Linear(c, h), nn.GELU(), nn.Linear(h, h))

    # -- facts -------------------------------------------------------------------------------------------------
    @property
    def spec(self) -> ModelSpec:
        return spec_of(self.config)

    @property
    def dtype(self) -> torch.dtype:
        return self.showo.model.final_layernorm.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.showo.model.final_layernorm.weight.device

    @property
    def layers(self) -> Sequence[Any]:
        return self.showo.model.layers  # type: ignore[return-value]

    def ffns(self) -> Mapping[tuple[int, str], FFN]:
        return {(i, "ffn"): layer.mlp for i, layer in enumerate(self.layers)}

    def projections(self, *, lm_head: bool = False) -> Iterator[nn.Module]:
        yield self.showo.model.layers
        if lm_head:
            yield self.showo.lm_head

    def layout(self, processor: Any) -> Any:
        from flashu.models.showo.layout import ShowOLayout  # it writes requests, which are above the models

        return ShowOLayout(self, processor)

    # -- what the core calls -----------------------------------------------------------------------------------
    def embed(self, contents: Sequence[Content]) -> list[Tensor]:
        """Embedded tokens [S, h] of each content."""
        return [
            torch.cat([self._embedded(part) for part in content])
            if isinstance(content, tuple)
            else self._embedded(content)
            for content in contents
        ]

    def _embedded(self, part: Tensor) -> Tensor:
        return part if part.is_floating_point() else self.embed_tokens(part.to(self.device))

    def embed_tokens(self, ids: Tensor) -> Tensor:
        return self.showo.model.embed_tokens(ids)

    def get_input_embeddings(self) -> nn.Module:
        return self.showo.model.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.showo.lm_head

    def rope(self, position: Tensor) -> Rope:
        return self.showo.model.rotary_emb(position)

    def norm(self, x: Tensor, spans: tuple[Span, ...] = ()) -> Tensor:
        return self.showo.model.final_layernorm(x)

    def logits(self, hidden: Tensor, codes: tuple[int, int] | None = None) -> Tensor:
        """fp32, as in the original; the rows of other tokens are not multiplied where only ``codes`` are asked for."""
        head = self.showo.lm_head
        if codes is None:
            return head(hidden).float()
        low, high = codes
        if type(head) is not nn.Linear or type(head.weight) is not nn.Parameter:  # packed or quantized: only whole
            return head(hidden)[..., low:high].float()
        return F.linear(hidden, head.weight[low:high], head.bias[low:high]).float()
