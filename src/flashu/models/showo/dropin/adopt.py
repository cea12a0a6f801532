"""Our Show-o over the weights of an instance of the original class: one storage, two views."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn

from flashu.errors import CheckpointError
from flashu.models.adopt import attribute, share_parameters
from flashu.models.showo.config import LLMConfig, ShowOConfig
from flashu.models.showo.load import rotary_of
from flashu.models.showo.model import ShowO
from flashu.models.showo.official import SPECIAL

Model = TypeVar("Model", bound=ShowO)


def recognizes(module: nn.Module) -> bool:
    """Whether a module is an instance of the original authors' class, by the parts only it has."""
    parts = ("showo.model.final_layernorm", "showo.lm_head.bias", "t2i_generate", "mmu_generate")
    return all(attribute(module, part, None) is not None for part in parts)


def adopted(
    module: nn.Module,
    cls: type[Model] = ShowO,  # type: ignore[assignment]
    image_tokens: int | None = None,
) -> Model:
    """A model whose parameters are those of ``module`` (the same tensors), in eval mode.

    Sizes are read off the tensors, those that leave no trace there off its config; ``image_tokens``: of an image, where
    the caller knows. Raises `CheckpointError` for anything but a whole Show-o.
    """
    try:
        config = sizes(module, image_tokens)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{type(module).__name__} is not a Show-o of the original class: {error}") from error
    with torch.device("meta"):
        view = cls(config)
    share(view, module)
    return view.eval()


def share(view: ShowO, module: nn.Module) -> None:
    """Point every parameter of ``view`` at that of ``module``."""
    share_parameters(view, module, "Show-o")
    view.showo.model.rotary_emb = rotary_of(view.config).to(view.device)


def sizes(module: Any, image_tokens: int | None = None) -> ShowOConfig:
    """Sizes of an instance of the original class."""
    decoder, embedding = module.showo.model, module.showo.model.embed_tokens.weight
    layer, llm = decoder.layers[0], attribute(module, "showo.config", None)
    head_dim = len(layer.self_attn.q_layernorm.weight)
    scaled = attribute(llm, "rope_parameters", {})
    theta = scaled.get("rope_theta") or attribute(llm, "rope_theta", 1e4)
    factor = scaled.get("partial_rotary_factor") or attribute(llm, "partial_rotary_factor", 0.5)
    text = int(module.config.llm_vocab_size)
    projector = getattr(module, "mm_projector", None)
    return ShowOConfig(
        llm=LLMConfig(
            vocab_size=len(embedding),
            hidden_size=embedding.shape[1],
            intermediate_size=len(layer.mlp.fc1.weight),
            num_hidden_layers=len(decoder.layers),
            num_attention_heads=embedding.shape[1] // head_dim,
            layer_norm_eps=decoder.final_layernorm.eps,
            partial_rotary_factor=float(factor),
            rope_theta=float(theta),
        ),
        text_tokens=text,
        special_tokens=SPECIAL,
        codebook_size=len(embedding) - 1 - text - SPECIAL,
        image_tokens=image_tokens or attribute(module, "config.num_vq_tokens", 256),
        clip_size=None if projector is None else projector[0].weight.shape[1],
    )
