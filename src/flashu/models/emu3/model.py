"""Emu3: the architecture and its weights. Module names are those of transformers' class.

It knows no acceleration method and keeps no state. Codes of images are tokens like others; the image tokenizer is part
of the processor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, device, dtype, nn

from flashu.models.emu3.config import Emu3Config, TextConfig
from flashu.models.emu3.spec import spec_of
from flashu.models.ffn import FFN
from flashu.models.layers import Attention, DecoderLayer, RMSNorm, Rope, RotaryEmbedding, Span
from flashu.plan import ModelSpec


class Decoder(nn.Module):
    def __init__(self, cfg: TextConfig, pad: int) -> None:
        super().__init__()
        head_dim = cfg.hidden_size // cfg.num_attention_heads
        rotary = RotaryEmbedding(head_dim, cfg.rope_theta)
        rotary.exact = True  # the original's frequencies are fp32 whatever the weights are

        def layer() -> DecoderLayer:
            heads, kv_heads = cfg.num_attention_heads, cfg.num_key_value_heads
            attention = Attention(cfg.hidden_size, heads, kv_heads, head_dim, rotary, qkv_bias=False)
            return DecoderLayer(attention, cfg.hidden_size, cfg.intermediate_size, cfg.rms_norm_eps)

        self.embed_tokens = nn.Embedding(cfg.vocab_size, cfg.hidden_size, padding_idx=pad)
        self.layers = nn.ModuleList(layer() for _ in range(cfg.num_hidden_layers))
        self.norm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps)
        self.rotary_emb = rotary


class Body(nn.Module):
    def __init__(self, config: Emu3Config) -> None:
        super().__init__()
        self.text_model = Decoder(config.text, config.ids.pad)


class Emu3(nn.Module):
    """One decoder that draws code after code and answers word after word."""

    name = ""
    quantization: str | None = None
    head = None

    def __init__(self, config: Emu3Config) -> None:
        super().__init__()
        self.config = config
        self.model = Body(config)
        self.lm_head = nn.Linear(config.text.hidden_size, config.text.vocab_size, bias=False)

    # -- facts -------------------------------------------------------------------------------------------------
    @property
    def spec(self) -> ModelSpec:
        return spec_of(self.config)

    @property
    def decoder(self) -> Decoder:
        return self.model.text_model

    @property
    def dtype(self) -> dtype:
        return self.decoder.norm.weight.dtype

    @property
    def device(self) -> device:
        return self.decoder.norm.weight.device

    @property
    def layers(self) -> Sequence[Any]:
        return self.decoder.layers  # type: ignore[return-value]

    def ffns(self) -> Mapping[tuple[int, str], FFN]:
        return {(i, "ffn"): layer.mlp for i, layer in enumerate(self.layers)}

    def projections(self, *, lm_head: bool = False) -> Iterator[nn.Module]:
        yield self.decoder.layers
        if lm_head:
            yield self.lm_head

    def layout(self, processor: Any) -> Any:
        from flashu.models.emu3.layout import Emu3Layout  # it writes requests, which are above the models

        return Emu3Layout(self, processor)

    # -- what the core calls -----------------------------------------------------------------------------------
    def embed(self, contents: Sequence[Tensor]) -> list[Tensor]:
        """Rows of ids [S]."""
        return [self.embed_tokens(ids.to(self.device)) for ids in contents]

    def embed_tokens(self, ids: Tensor) -> Tensor:
        return self.decoder.embed_tokens(ids)

    def get_input_embeddings(self) -> nn.Module:
        return self.decoder.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def rope(self, position: Tensor) -> Rope:
        return self.decoder.rotary_emb(position)

    def norm(self, x: Tensor, spans: tuple[Span, ...] = ()) -> Tensor:
        return self.decoder.norm(x)

    def logits(self, hidden: Tensor, codes: tuple[int, int] | None = None) -> Tensor:
        if codes is None:
            return self.lm_head(hidden)
        weight = self.lm_head._parameters.get("weight")
        if type(weight) is not nn.Parameter or weight.is_meta:  # quantized, packed or offloaded: no rows to pick
            return self.lm_head(hidden)[..., slice(*codes)]
        return F.linear(hidden, weight[slice(*codes)])
