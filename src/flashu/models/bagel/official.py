"""The official checkpoint's config files, put into our terms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from flashu.errors import CheckpointError
from flashu.models.bagel.config import BagelConfig, LLMConfig, VisionConfig
from flashu.models.defaults import GenerationDefaults


def official_config(
    llm: Mapping[str, Any], vit: Mapping[str, Any], rest: Mapping[str, Any] | None = None
) -> BagelConfig:
    """Sizes of llm_config.json, vit_config.json and, where there is one, config.json, whose defaults are the released
    model's. `CheckpointError` for what this code cannot build, or for sizes that are missing."""
    rest = rest or {}
    expected = {"hidden_act": "silu", "qk_norm": True, "layer_module": "Qwen2MoTDecoderLayer"}
    expected_vit = {"hidden_act": "gelu_pytorch_tanh", "rope": False, "num_channels": 3}
    for data, wanted, file in ((llm, expected, "llm_config.json"), (vit, expected_vit, "vit_config.json")):
        for key, value in wanted.items():
            # The released llm_config.json leaves the last two to the script that loads it.
            if data.get(key, value) not in (value, "Qwen2DecoderLayer"):
                raise CheckpointError(f"{file}: {key} is {data[key]!r}, but this code builds {value!r} only")
    if rest.get("interpolate_pos"):
        raise CheckpointError("config.json: interpolate_pos is true, which this code does not build")
    vae = rest.get("vae_config", {})
    known = {
        name: rest[name]
        for name in ("vit_max_num_patch_per_side", "latent_patch_size", "max_latent_size", "visual_gen")
        if name in rest
    }
    known |= {name: vae[name] for name in ("z_channels", "downsample") if name in vae}
    language = LLMConfig(**_sizes(LLMConfig, llm, "llm_config.json"))
    sizes = _sizes(VisionConfig, vit, "vit_config.json")
    # The released loading leaves out the last layer.
    vision = VisionConfig(**(sizes | {"num_hidden_layers": sizes["num_hidden_layers"] - 1}))
    try:
        return BagelConfig(language, vision, **({"vit_max_num_patch_per_side": min(70, vision.side)} | known))
    except ValueError as e:
        raise CheckpointError(str(e)) from e


REQUIRED = {
    "llm_config.json": ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    "vit_config.json": ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size"),
}


def _sizes(cls: type, data: Mapping[str, Any], file: str) -> dict[str, Any]:
    if missing := [name for name in REQUIRED[file] if name not in data]:
        raise CheckpointError(f"{file}: {', '.join(missing)} is missing")
    return {field.name: data[field.name] for field in fields(cls) if field.name in data}


def official_defaults(config: BagelConfig) -> GenerationDefaults:
    """The released app's settings. Its 50 time points are 49 forwards; an answer has one token fewer than it asks
    for."""
    side = config.max_latent_size * config.cell
    return GenerationDefaults(steps=49, guidance=4.0, shift=3.0, height=side, width=side, max_new_tokens=511)
