"""Networks that draft tokens from a model's own features: EAGLE-3's, and one with meta queries (Hyper-Bagel).

A position reads the features of its token and the embedding of the next one, and predicts the one after that. Behind
the tokens that are known it goes on from its own output ("extrapolated").
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashu.errors import CheckpointError, FlashUError
from flashu.models.ffn import GatedFFN
from flashu.models.layers import (
    Attention,
    AttentionContext,
    DecoderLayer,
    KeyValue,
    RMSNorm,
    Rope,
    RotaryEmbedding,
    Span,
    split_heads,
)
from flashu.models.protocol import UnifiedModel
from flashu.models.sizes import Checked

Drafted = tuple[Tensor, list[KeyValue | None]]
"""Output [B, S, D], and the keys and values of each layer (None: it did not run)."""


@dataclass(frozen=True)
class DraftConfig(Checked):
    """Sizes of the model that is drafted for, as its `ModelSpec` has them; ``drafted``: tokens that can be drafted."""

    kind: ClassVar[str]
    least = 0

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    drafted: int

    @classmethod
    def of(cls, model: UnifiedModel, drafted: int | None = None, **more: Any) -> Any:
        """For a model; ``drafted`` None = its whole vocabulary."""
        spec = model.spec
        sizes = (spec.hidden, spec.heads, spec.kv_heads, spec.head_dim, spec.vocabulary)
        return cls(*sizes, spec.vocabulary if drafted is None else drafted, **more)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Any:
        """Inverse of `dataclasses.asdict`; `CheckpointError` for other keys."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(data.keys() - known):
            raise CheckpointError(f"a draft of kind {cls.kind!r} has no settings {', '.join(unknown)}")
        try:
            settings: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in data.items()}
            return cls(**settings)
        except (TypeError, FlashUError) as error:
            raise CheckpointError(f"the draft's settings cannot be used: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def check(self, model: UnifiedModel) -> None:
        """`CheckpointError` unless these are the model's sizes."""
        spec = model.spec
        for name, here, there in (
            ("hidden size", self.hidden, spec.hidden),
            ("vocabulary", self.vocabulary, spec.vocabulary),
        ):
            if here != there:
                raise CheckpointError(
                    f"this draft is for another model: its {name} is {here}, the model's {there}. "
                    "Train one for this model with `flashu train draft`"
                )


class DraftNetwork(nn.Module):
    """What the kinds have in common. ``collect``: the layers of the model whose outputs it reads; ``target_ids`` [n]:
    the tokens it can draft, None = all.
    """

    config: DraftConfig
    collect: tuple[int, ...]
    target_ids: Tensor | None

    def _set_ids(self, ids: Sequence[int] | None) -> None:
        self.register_buffer("target_ids", None if ids is None else torch.tensor(ids))

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def check(self, model: UnifiedModel) -> None:
        """`CheckpointError` unless it is of this model's sizes."""
        self.config.check(model)
        if max(self.collect) >= model.spec.layers:
            raise CheckpointError(f"this draft reads layer {max(self.collect)} of a model that has {model.spec.layers}")

    def features(self, collected: Sequence[Tensor]) -> Tensor:
        """What is read of the model's outputs [B, S, D] each -> [B, S, D]. Every token by itself."""
        raise TypeError(f"{type(self).__name__} must define features")

    def forward(self, x: Tensor, features: Tensor, contexts: Sequence[AttentionContext]) -> Drafted:
        """x [B, S, D]: the embedded token after each; ``contexts``: of each layer."""
        raise TypeError(f"{type(self).__name__} must define forward")

    def extrapolated(self, x: Tensor, hidden: Tensor, contexts: Sequence[AttentionContext]) -> Drafted:
        """The same from its own output of the token before, instead of features."""
        return self(x, hidden, contexts)

    def logits(self, hidden: Tensor) -> Tensor:
        """[B, S, D] -> [B, S, n]."""
        raise TypeError(f"{type(self).__name__} must define logits")

    def rope(self, position: Tensor) -> Rope:
        raise TypeError(f"{type(self).__name__} must define rope")

    def kv_shape(self) -> list[tuple[int, int]]:
        """(heads, head size) of the keys and values of each layer."""
        raise TypeError(f"{type(self).__name__} must define kv_shape")


# -- EAGLE-3 -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Eagle3Config(DraftConfig):
    """``neurons``: FFN width. ``layer_ids``: the layers whose inputs are read, as vLLM counts them. ``fc_norm``: each
    is normed before they are joined, ``norm_before_fc``: all together. ``norm_output``: what is extrapolated from is
    normed. ``norm_before_residual``: so is what the first layer adds to."""

    kind: ClassVar[str] = "eagle3"

    neurons: int = 0
    layer_ids: tuple[int, ...] = ()
    layers: int = 1
    eps: float = 1e-6
    theta: float = 1e4
    bias: bool = False
    fc_norm: bool = False
    norm_before_fc: bool = False
    norm_output: bool = False
    norm_before_residual: bool = False

    @classmethod
    def of(cls, model: UnifiedModel, drafted: int | None = None, **more: Any) -> Eagle3Config:
        count = model.spec.layers
        ids = tuple(sorted({min(2, count), count // 2, max(count - 3, 1)}))
        return super().of(model, drafted, **{"neurons": model.spec.neurons, "layer_ids": ids, "fc_norm": True} | more)


class Eagle3Layer(nn.Module):
    """A decoder layer whose attention reads the embedding and the hidden state side by side."""

    def __init__(self, cfg: Eagle3Config, rotary: RotaryEmbedding) -> None:
        super().__init__()
        sizes = (cfg.heads, cfg.kv_heads, cfg.head_dim, rotary)
        self.self_attn = Attention(2 * cfg.hidden, *sizes, qkv_bias=cfg.bias)
        self.self_attn.o_proj = nn.Linear(cfg.heads * cfg.head_dim, cfg.hidden, bias=cfg.bias)
        self.mlp = GatedFFN(cfg.hidden, cfg.neurons)
        self.input_layernorm, self.hidden_norm, self.post_attention_layernorm = (
            RMSNorm(cfg.hidden, cfg.eps) for _ in range(3)
        )
        self.norm_before_residual = cfg.norm_before_residual

    def forward(self, x: Tensor, hidden: Tensor, context: AttentionContext) -> tuple[Tensor, KeyValue]:
        normed = self.hidden_norm(hidden)
        attended, kv = self.self_attn(torch.cat((self.input_layernorm(x), normed), dim=-1), context)
        hidden = (normed if self.norm_before_residual else hidden) + attended
        return hidden + self.mlp(self.post_attention_layernorm(hidden)), kv


class Eagle3(DraftNetwork):
    """EAGLE-3 (Li et al. 2025): three layers' outputs, projected; a layer or more; a head of its own. Module names are
    those of the `speculators` format."""

    config: Eagle3Config

    def __init__(self, config: Eagle3Config, ids: Sequence[int] | None = None) -> None:
        super().__init__()
        self.config = config
        self.collect = tuple(n - 1 for n in config.layer_ids)
        width, count = config.hidden, len(config.layer_ids)
        self.rotary_emb = RotaryEmbedding(config.head_dim, config.theta)
        self.fc = nn.Linear(count * width, width, bias=False)
        self.layers = nn.ModuleList([Eagle3Layer(config, self.rotary_emb)])
        for _ in range(1, config.layers):
            sizes = (config.heads, config.kv_heads, config.head_dim, self.rotary_emb)
            attention = Attention(width, *sizes, qkv_bias=config.bias)
            self.layers.append(DecoderLayer(attention, width, config.neurons, config.eps))
        self.norm = RMSNorm(width, config.eps)
        self.lm_head = nn.Linear(width, config.drafted, bias=False)
        self.input_norm = RMSNorm(count * width, config.eps) if config.norm_before_fc else None
        norms = [RMSNorm(width, config.eps) for _ in range(count)] if config.fc_norm else None
        self.fc_norm = None if norms is None else nn.ModuleList(norms)
        self._set_ids(ids)

    @torch.no_grad()
    def start(self, model: UnifiedModel) -> Eagle3:
        """Begin with the model's own head and the FFN of its last layer, where it has the same form."""
        head = head_of(model)
        self.lm_head.weight.copy_(head if self.target_ids is None else head[self.target_ids])
        expert = model.spec.text_expert or model.spec.experts[0]
        inputs, output = model.ffns()[model.spec.layers - 1, expert].weights()
        if len(inputs) == 2 and output.bias is None:
            mine: Any = self.layers[0].mlp
            for part, given in zip((mine.gate_proj, mine.up_proj, mine.down_proj), (*inputs, output), strict=True):
                part.weight.copy_(given.weight)
        return self

    def features(self, collected: Sequence[Tensor]) -> Tensor:
        if self.fc_norm is not None:
            collected = [norm(x) for norm, x in zip(self.fc_norm, collected, strict=True)]
        joined = torch.cat(tuple(collected), dim=-1)
        return self.fc(joined if self.input_norm is None else self.input_norm(joined))

    def forward(self, x: Tensor, features: Tensor, contexts: Sequence[AttentionContext]) -> Drafted:
        first, *rest = self.layers
        hidden, kv = first(x, features, contexts[0])
        kvs: list[KeyValue | None] = [kv]
        for layer, context in zip(rest, contexts[1:], strict=True):
            hidden, kv = layer(hidden, context)
            kvs.append(kv)
        return self.norm(hidden) if self.config.norm_output else hidden, kvs

    def logits(self, hidden: Tensor) -> Tensor:
        return self.lm_head(hidden if self.config.norm_output else self.norm(hidden))

    def rope(self, position: Tensor) -> Rope:
        return self.rotary_emb(position)

    def kv_shape(self) -> list[tuple[int, int]]:
        return [(self.config.kv_heads, self.config.head_dim)] * len(self.layers)


# -- meta queries --------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class MetaConfig(DraftConfig):
    """``queries``: meta queries, 0 = none (and no layer over what they find). ``layers``: draft layers, copies of the
    model's last. ``zero_init``: the projections that add to the model's features begin as nought, so that an untrained
    draft computes what those layers would. ``normed``: features are brought to one scale first. ``eps``: of the norms
    of its own."""

    kind: ClassVar[str] = "meta_queries"

    queries: int = 4
    layers: int = 1
    zero_init: bool = True
    normed: bool = False
    eps: float = 1e-6


class MetaQueries(DraftNetwork):
    """Hyper-Bagel's draft (arXiv 2509.18824, section 3.1): learnt queries attend to all layers' outputs of a token,
    a layer (``context_layer``) joins the tokens, draft layers predict. Its head is the model's.

    The layers are copies of the model's own, whatever their kind; ``model`` is held for its rotary tables, last norm
    and head, and is no part of this one.
    """

    config: MetaConfig

    def __init__(self, config: MetaConfig, model: UnifiedModel, ids: Sequence[int] | None = None) -> None:
        super().__init__()
        self.config, self._model = config, (model,)
        width, count = config.hidden, model.spec.layers
        wide, narrow = config.heads * config.head_dim, config.kv_heads * config.head_dim
        high = count - 1 - config.layers
        self.residual = (min(1, high), high // 2, high)
        self.collect = tuple(range(count)) if config.queries else tuple(sorted(set(self.residual)))
        self.layers = nn.ModuleList(copy.deepcopy(layer) for layer in list(model.layers)[count - config.layers :])
        self.layers.requires_grad_(True)
        self.fc_residual = nn.Linear(3 * width, width, bias=False)
        self.fc2 = nn.Linear(2 * width, width, bias=False)
        self.norm_x, self.norm_features = RMSNorm(width, config.eps), RMSNorm(width, config.eps)
        adds = [self.fc2]
        if config.queries:
            self.queries = nn.Parameter(torch.randn(config.queries, width) * width**-0.5)
            self.q_proj, self.o_proj = nn.Linear(width, wide, bias=False), nn.Linear(wide, width, bias=False)
            self.k_proj, self.v_proj = (nn.Linear(width, narrow, bias=False) for _ in range(2))
            self.norm_layers = RMSNorm(width, config.eps)
            self.fc1 = nn.Linear(config.queries * width, width, bias=False)
            self.context_layer = copy.deepcopy(list(model.layers)[high])
            self.context_layer.requires_grad_(True)
            self.context_out = nn.Linear(width, width, bias=False)
            adds += [self.o_proj, self.fc1, self.context_out]
        if config.zero_init:
            for projection in adds:
                nn.init.zeros_(projection.weight)
            with torch.no_grad():
                self.fc_residual.weight.copy_(torch.cat((*torch.zeros(2, width, width), torch.eye(width)), dim=1))
        self._set_ids(ids)
        self.to(model.device, model.dtype)

    @property
    def model(self) -> UnifiedModel:
        return self._model[0]

    def features(self, collected: Sequence[Tensor]) -> Tensor:
        by_layer = dict(zip(self.collect, collected, strict=True))
        three = [by_layer[n] for n in self.residual]
        joined = torch.cat([self.norm_features(x) for x in three] if self.config.normed else three, dim=-1)
        found = self.fc_residual(joined)
        if not self.config.queries:
            return found
        return found + self.fc1(self._asked(torch.stack(tuple(collected), dim=2)).flatten(2))

    def _asked(self, layers: Tensor) -> Tensor:
        """What the queries find in the outputs [B, S, L, D] of all layers: [B, S, Q, D]."""
        cfg, known = self.config, self.norm_layers(layers).flatten(0, 1)
        q = split_heads(self.q_proj(self.queries)[None], cfg.head_dim).expand(len(known), -1, -1, -1)
        k, v = (split_heads(proj(known), cfg.head_dim) for proj in (self.k_proj, self.v_proj))
        found = F.scaled_dot_product_attention(q, k, v, enable_gqa=cfg.heads != cfg.kv_heads)
        return (self.queries + self.o_proj(found.transpose(1, 2).flatten(2))).unflatten(0, layers.shape[:2])

    def forward(self, x: Tensor, features: Tensor, contexts: Sequence[AttentionContext]) -> Drafted:
        kvs: list[KeyValue | None] = []
        if self.config.queries:
            joined, kv = self.context_layer(features, self._spanned(contexts[0], x))
            features = features + self.context_out(joined - features)
            kvs.append(kv)
        return self._drafted(x, features, contexts, kvs)

    def extrapolated(self, x: Tensor, hidden: Tensor, contexts: Sequence[AttentionContext]) -> Drafted:
        return self._drafted(x, hidden, contexts, [None] * bool(self.config.queries))

    def _drafted(
        self, x: Tensor, hidden: Tensor, contexts: Sequence[AttentionContext], kvs: list[KeyValue | None]
    ) -> Drafted:
        hidden = hidden + self.fc2(torch.cat((self.norm_features(hidden), self.norm_x(x)), dim=-1))
        for layer, context in zip(self.layers, contexts[len(kvs) :], strict=True):
            hidden, kv = layer(hidden, self._spanned(context, x))
            kvs.append(kv)
        return hidden, kvs

    def _spanned(self, context: AttentionContext, x: Tensor) -> AttentionContext:
        return context._replace(spans=self._spans(x))

    def _spans(self, x: Tensor) -> tuple[Span, ...]:
        """All tokens are text's expert's: what is drafted is text."""
        return tuple((expert, 0, x.shape[1]) for expert, _, _ in self.model.spec.text_spans)

    def logits(self, hidden: Tensor) -> Tensor:
        logits = self.model.logits(self.model.norm(hidden.to(self.model.dtype), self._spans(hidden)))
        return logits if self.target_ids is None else logits[..., self.target_ids]

    def rope(self, position: Tensor) -> Rope:
        return self.model.rope(position)

    def kv_shape(self) -> list[tuple[int, int]]:
        return [(self.config.kv_heads, self.config.head_dim)] * (len(self.layers) + bool(self.config.queries))


@torch.no_grad()
def head_of(model: UnifiedModel) -> Tensor:
    """The weights [V, D] of a model's text head, whatever it calls them."""
    eye = torch.eye(model.spec.hidden, dtype=model.dtype, device=model.device)
    return (model.logits(eye) - model.logits(torch.zeros_like(eye[:1]))).T.contiguous()


def frequent(answers: Sequence[Sequence[int]], vocabulary: int, count: int) -> list[int]:
    """The ``count`` most frequent tokens of some answers, in the vocabulary's order; the lowest where few differ."""
    times = torch.bincount(torch.tensor([token for answer in answers for token in answer]), minlength=vocabulary)
    return times.argsort(descending=True, stable=True)[:count].sort().values.tolist()
