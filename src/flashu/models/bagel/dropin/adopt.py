"""Our BAGEL over the weights of an instance of the original class: one storage, two views."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn

from flashu.errors import CheckpointError
from flashu.models.adopt import attribute, share_parameters
from flashu.models.bagel.config import BagelConfig, LLMConfig, VisionConfig
from flashu.models.bagel.load import fill_buffers
from flashu.models.bagel.model import Bagel

Model = TypeVar("Model", bound=Bagel)


def recognizes(module: nn.Module) -> bool:
    """Whether a module is an instance of the original authors' class, by the parts only it has."""
    parts = ("language_model.model.norm_moe_gen", "vae2llm", "generate_image", "forward_cache_update_vae")
    return all(attribute(module, part, None) is not None for part in parts)


def adopted(module: nn.Module, cls: type[Model] = Bagel) -> Model:  # type: ignore[assignment]
    """A model whose parameters are those of ``module`` (the same tensors), in eval mode; sizes are read off them.
    Raises `CheckpointError` for anything but a whole BAGEL."""
    try:
        config = sizes(module)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{type(module).__name__} is not a BAGEL of the original class: {error}") from error
    with torch.device("meta"):
        view = cls(config)
    share(view, module)
    return view.eval()


def share(view: Bagel, module: nn.Module) -> None:
    """Point every parameter of ``view`` at that of ``module``."""
    share_parameters(view, module, "BAGEL")
    fill_buffers(view, view.device)


def sizes(module: Any) -> BagelConfig:
    """Sizes of an instance of the original class."""
    decoder, vit = module.language_model.model, module.vit_model.vision_model
    attention, table = decoder.layers[0].self_attn, decoder.embed_tokens.weight
    head_dim = len(attention.q_norm.weight)
    patch = attribute(module, "latent_patch_size", 2)
    size = int((vit.embeddings.patch_embedding.weight.shape[1] // 3) ** 0.5)
    heads = (
        attribute(module, "config.vit_config.num_attention_heads", None) or vit.encoder.layers[0].self_attn.num_heads
    )
    side = int(len(vit.embeddings.position_embedding.weight) ** 0.5)
    return BagelConfig(
        llm=LLMConfig(
            vocab_size=len(table),
            hidden_size=table.shape[1],
            intermediate_size=len(decoder.layers[0].mlp.gate_proj.weight),
            num_hidden_layers=len(decoder.layers),
            num_attention_heads=len(attention.q_proj.weight) // head_dim,
            num_key_value_heads=len(attention.k_proj.weight) // head_dim,
            rms_norm_eps=attribute(module, "config.llm_config.rms_norm_eps", 1e-6),
            rope_theta=float(attribute(module, "config.llm_config.rope_theta", 1e6)),
        ),
        vit=VisionConfig(
            hidden_size=len(vit.embeddings.patch_embedding.weight),
            intermediate_size=len(vit.encoder.layers[0].mlp.fc1.weight),
            num_hidden_layers=len(vit.encoder.layers),
            num_attention_heads=heads or vit.encoder.layers[0].self_attn.num_heads,
            patch_size=size,
            image_size=side * size,
            layer_norm_eps=vit.post_layernorm.eps,
        ),
        vit_max_num_patch_per_side=int(len(module.vit_pos_embed.pos_embed) ** 0.5),
        latent_patch_size=patch,
        max_latent_size=int(len(module.latent_pos_embed.pos_embed) ** 0.5),
        z_channels=module.vae2llm.weight.shape[1] // patch**2,
    )
