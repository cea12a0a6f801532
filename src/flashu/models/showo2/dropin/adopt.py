"""Our Show-o2 over the weights of an instance of the original class: one storage, two views."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from flashu.errors import CheckpointError
from flashu.models.adopt import place, share_parameters
from flashu.models.layers import RotaryEmbedding
from flashu.models.showo2.config import HeadConfig, LLMConfig, ShowO2Config, VisionConfig
from flashu.models.showo2.model import ShowO2

Model = TypeVar("Model", bound=ShowO2)
Block = Literal["script", "training"]
Unpatchify = Literal["raster", "patch"]


def adopted(
    module: nn.Module,
    cls: type[Model] = ShowO2,  # type: ignore[assignment]
    *,
    exact_rope: bool = False,
    unpatchify: Unpatchify = "raster",
    understanding_block: Block = "script",
) -> Model:
    """A model whose parameters and buffers are those of ``module`` (the same tensors), in eval mode.

    Sizes are read off the tensors. ``exact_rope``: rotary frequencies in fp32 even if ``module`` was cast to less;
    by default they are the module's own, rounded as it rounded them. ``unpatchify``, ``understanding_block``: see
    `ShowO2Config`; the defaults are the original's. Raises `CheckpointError` for anything but a whole Show-o2.
    """
    try:
        config = replace(sizes(module, unpatchify, understanding_block), exact_rope=exact_rope)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{type(module).__name__} is not a Show-o2 model of the original class: {error}"
        ) from error
    with torch.device("meta"):
        view = cls(config)
    share(view, module, exact_rope)
    return view.eval()


def share(view: ShowO2, module: nn.Module, exact_rope: bool = False) -> None:
    """Point every parameter and buffer of ``view`` at those of ``module``; `CheckpointError` unless they correspond."""
    share_parameters(view, module, "Show-o2")
    buffers = dict(module.named_buffers(remove_duplicate=False))
    for name, _ in list(view.named_buffers(remove_duplicate=False)):
        owner, leaf = place(view, name)
        # A newer LLM class keeps one rotary table for all its layers.
        source = name if name in buffers else re.sub(r"layers\.\d+\.self_attn\.", "", name)
        if source not in buffers:
            raise CheckpointError(f"{type(module).__name__} has no buffer {name}")
        setattr(owner, leaf, buffers[source])
    if exact_rope:
        _exact_rope(view, module)


def sizes(module: Any, unpatchify: Unpatchify = "raster", understanding_block: Block = "script") -> ShowO2Config:
    """Sizes of an instance of the original class, read off its tensors; the few that leave no trace in a shape off
    its attributes (heads and eps)."""
    decoder, embedding = module.showo.model, module.showo.model.embed_tokens.weight
    layer, head, vision = decoder.layers[0], module.diffusion_head_a[0], module.und_trans.layers[0]
    head_dim = 2 * len(decoder.rotary_emb.inv_freq)
    llm = LLMConfig(
        vocab_size=len(embedding),
        hidden_size=embedding.shape[1],
        intermediate_size=len(layer.mlp.gate_proj.weight),
        num_hidden_layers=len(decoder.layers),
        num_attention_heads=len(layer.self_attn.q_proj.weight) // head_dim,
        num_key_value_heads=len(layer.self_attn.k_proj.weight) // head_dim,
        tie_word_embeddings=module.showo.lm_head.weight is embedding,
        rms_norm_eps=_eps(decoder.norm),
        rope_theta=_theta(module),
    )
    width = len(head.self_attn.q_norm.weight)
    flow = HeadConfig(
        hidden_size=head.self_attn.q_proj.weight.shape[1],
        intermediate_size=len(head.mlp.gate_proj.weight),
        num_layers=len(module.diffusion_head_a),
        num_attention_heads=len(head.self_attn.q_proj.weight) // width,
        num_key_value_heads=len(head.self_attn.k_proj.weight) // width,
        head_dim=width,
        rms_norm_eps=_eps(head.input_layernorm),
    )
    positions, seen = module.position_embedding.weight.shape
    semantic = VisionConfig(
        hidden_size=seen,
        intermediate_size=len(vision.mlp.fc1.weight),
        num_hidden_layers=len(module.und_trans.layers),
        num_attention_heads=vision.self_attn.num_heads,
        num_positions=positions,
        layer_norm_eps=vision.layer_norm1.eps,
    )
    _, channels, patch, _ = module.image_embedder_gen.proj.weight.shape
    height, across = _grid(module)
    return ShowO2Config(llm, semantic, flow, channels, height, across, patch, unpatchify, understanding_block)


def _eps(norm: Any) -> float:
    return norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps


def _theta(module: Any) -> float:
    """The LLM's rotary base: its config's, or Qwen2.5's; only ``exact_rope`` needs it, and checks it."""
    config = getattr(module.showo, "config", None)
    return float(getattr(config, "rope_theta", 1e6))


def _grid(module: Any) -> tuple[int, int]:
    """The configured grid of image tokens; square if the instance keeps no config (only its size counts)."""
    config = getattr(module, "config", None)
    if hasattr(config, "image_latent_height"):
        return config.image_latent_height, config.image_latent_width  # type: ignore[union-attr]
    count = module.image_position_ids.shape[-1]
    side = math.isqrt(count)
    return side, count // side


def _exact_rope(view: ShowO2, module: nn.Module) -> None:
    """Give ``view`` fp32 frequencies, once they are known to be those the module's were rounded from."""
    cfg = view.config
    scaling = {
        "factor": cfg.head.rope_factor,
        "low": cfg.head.rope_low,
        "high": cfg.head.rope_high,
        "original_length": cfg.head.rope_original_length,
    }
    llm = RotaryEmbedding(cfg.llm.hidden_size // cfg.llm.num_attention_heads, cfg.llm.rope_theta)
    head = RotaryEmbedding(cfg.head.head_dim, cfg.head.rope_theta, scaling)
    for name, buffer in list(view.named_buffers(remove_duplicate=False)):
        if not name.endswith("inv_freq"):
            continue
        right: Tensor = (llm if name.startswith("showo.") else head).inv_freq
        step = torch.finfo(buffer.dtype).eps
        if not torch.allclose(right, buffer.float().cpu(), rtol=2 * step, atol=0):
            raise CheckpointError(f"{name} of {type(module).__name__} is not a rounding of the known frequencies")
        owner, leaf = place(view, name)
        setattr(owner, leaf, right.to(buffer.device))
