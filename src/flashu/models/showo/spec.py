"""Show-o's sizes as the core reads them."""

from __future__ import annotations

from flashu.models.showo.config import ShowOConfig
from flashu.plan import ModelSpec


def spec_of(config: ShowOConfig) -> ModelSpec:
    llm = config.llm
    return ModelSpec(
        family="showo",
        layers=llm.num_hidden_layers,
        hidden=llm.hidden_size,
        heads=llm.num_attention_heads,
        kv_heads=llm.num_attention_heads,
        head_dim=llm.head_dim,
        neurons=llm.intermediate_size,
        vocabulary=llm.vocab_size,
        drawing="masked",
        guidance_from=1,
        ffn_matrices=2,
        codes=config.codes,
        markers=2,
        pictures=1,
    )
