"""Janus-Pro's sizes as the core reads them."""

from __future__ import annotations

from flashu.models.janus.config import JanusConfig
from flashu.plan import ModelSpec


def spec_of(config: JanusConfig) -> ModelSpec:
    text = config.text
    return ModelSpec(
        family="janus",
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        heads=text.num_attention_heads,
        kv_heads=text.num_key_value_heads,
        head_dim=text.hidden_size // text.num_attention_heads,
        neurons=text.intermediate_size,
        vocabulary=text.vocab_size,
        drawing="autoregressive",
        context="cached",
        codes=config.codes,
        markers=0,
    )
