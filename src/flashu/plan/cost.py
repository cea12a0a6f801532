"""FLOPs of a forward, from shapes alone (multiply-adds count two)."""

from __future__ import annotations

from flashu.models.showo2.config import ShowO2Config


def decoder_layer(cfg: ShowO2Config, tokens: int, keys: int, neurons: int) -> int:
    """One decoder layer on one row: ``tokens`` queries over ``keys`` keys, an FFN of ``neurons``."""
    llm = cfg.llm
    head_dim = llm.hidden_size // llm.num_attention_heads
    projections = llm.hidden_size * (2 * llm.hidden_size + 2 * llm.num_key_value_heads * head_dim)
    return 2 * tokens * (projections + 2 * keys * llm.hidden_size + 3 * llm.hidden_size * neurons)


def semantic_path(cfg: ShowO2Config, image_tokens: int) -> int:
    """Embedding one image's latents: patch embedders, semantic layers, fusion."""
    v, h = cfg.vision, cfg.llm.hidden_size
    patch = cfg.patch_size**2 * cfg.image_latent_dim * (v.hidden_size + h)
    layer = 4 * v.hidden_size**2 + 2 * v.hidden_size * v.intermediate_size + 2 * image_tokens * v.hidden_size
    fusion = (v.hidden_size + h) * h + h * h
    return 2 * image_tokens * (patch + v.num_hidden_layers * layer + fusion)


def head_body(cfg: ShowO2Config, tokens: int, keys: int) -> int:
    """The flow head's cacheable part on one row, the modulation (once per forward) not counted."""
    head, h = cfg.head, cfg.llm.hidden_size
    d = head.hidden_size
    bridge = (h * d + d * d) if h != d else 0
    projections = d * (2 * d + 2 * head.num_key_value_heads * head.head_dim)
    block = projections + 2 * keys * d + 3 * d * head.intermediate_size
    return 2 * tokens * (bridge + head.num_layers * block)


def modulation(cfg: ShowO2Config) -> int:
    """adaLN of all blocks, once per forward."""
    return 2 * cfg.head.num_layers * 6 * cfg.head.hidden_size**2


def head_out(cfg: ShowO2Config, image_tokens: int) -> int:
    """The head's last layer on one row."""
    d = cfg.head.hidden_size
    return 2 * (image_tokens * d * cfg.patch_size**2 * cfg.image_latent_dim + 2 * d * d)
