"""Show-o2's sizes as the core reads them."""

from __future__ import annotations

from flashu.models.showo2.config import ShowO2Config
from flashu.plan import ModelSpec, Work


def spec_of(config: ShowO2Config) -> ModelSpec:
    llm, head, vision = config.llm, config.head, config.vision
    h, d, v = llm.hidden_size, head.hidden_size, vision.hidden_size
    cell = config.patch_size**2 * config.image_latent_dim
    semantic = vision.num_hidden_layers
    image = Work(
        per_token=cell * (v + h) + semantic * (4 * v * v + 2 * v * vision.intermediate_size) + (v + h) * h + h * h,
        per_key=2 * semantic * v,
    )
    projections = d * (2 * d + 2 * head.num_key_value_heads * head.head_dim)
    entrance = h * d + d * d if h != d else 0
    return ModelSpec(
        family="showo2",
        layers=llm.num_hidden_layers,
        hidden=h,
        heads=llm.num_attention_heads,
        kv_heads=llm.num_key_value_heads,
        head_dim=h // llm.num_attention_heads,
        neurons=llm.intermediate_size,
        vocabulary=llm.vocab_size,
        drawing="flow",
        head_blocks=head.num_layers,
        image=image,
        head=Work(
            per_token=entrance + head.num_layers * (projections + 3 * d * head.intermediate_size),
            per_key=2 * head.num_layers * d,
            once=6 * head.num_layers * d * d,
        ),
        output=Work(per_token=d * cell, once=2 * d * d),
    )
