"""BAGEL's sizes as the core reads them."""

from __future__ import annotations

from flashu.models.bagel.config import BagelConfig
from flashu.models.bagel.experts import GEN, UND
from flashu.models.timestep import FREQUENCIES
from flashu.plan import ModelSpec, Work

TEXT, IMAGE = "text", "image"
"""Guidance branches: without the text, and without the pictures before it."""


def spec_of(config: BagelConfig) -> ModelSpec:
    llm, vit, h = config.llm, config.vit, config.llm.hidden_size
    drawing = config.visual_gen
    return ModelSpec(
        family="bagel",
        layers=llm.num_hidden_layers,
        hidden=h,
        heads=llm.num_attention_heads,
        kv_heads=llm.num_key_value_heads,
        head_dim=llm.head_dim,
        neurons=llm.intermediate_size,
        vocabulary=llm.vocab_size,
        drawing="flow" if drawing else None,
        experts=(UND, GEN) if drawing else (UND,),
        text_expert=UND,
        context="cached",
        branches=(TEXT, IMAGE),
        markers=2,
        image=Work(per_token=config.token_size * h, once=FREQUENCIES * h + h * h),
        output=Work(per_token=config.token_size * h),
        picture=Work(
            per_token=3 * vit.patch_size**2 * vit.hidden_size
            + vit.num_hidden_layers * (4 * vit.hidden_size**2 + 2 * vit.hidden_size * vit.intermediate_size)
            + vit.hidden_size * h
            + h * h,
            per_key=2 * vit.num_hidden_layers * vit.hidden_size,
        ),
    )
