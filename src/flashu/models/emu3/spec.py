"""Emu3's sizes as the core reads them."""

from __future__ import annotations

from flashu.models.emu3.config import Emu3Config
from flashu.plan import ModelSpec


def spec_of(config: Emu3Config) -> ModelSpec:
    text = config.text
    return ModelSpec(
        family="emu3",
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        heads=text.num_attention_heads,
        kv_heads=text.num_key_value_heads,
        head_dim=text.hidden_size // text.num_attention_heads,
        neurons=text.intermediate_size,
        vocabulary=text.vocab_size,
        drawing="autoregressive",
        context="cached",
        codes=(config.ids.first, config.ids.first + config.codes),
        markers=0,
    )
