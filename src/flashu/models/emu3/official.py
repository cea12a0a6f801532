"""The official checkpoints' config.json and key names, put into our terms.

There are two layouts: transformers' (config.json of model type "emu3", the image tokenizer among the weights), as its
class saves it and, with older prefixes, as the hub's files have it; and the authors' (model type "Emu3"), whose image
tokenizer is a repository of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from torch import Tensor

from flashu.errors import CheckpointError
from flashu.models.defaults import GenerationDefaults
from flashu.models.emu3.config import Emu3Config, Ids, TextConfig, VQConfig

TRANSFORMERS, AUTHORS = "emu3", "Emu3"
AREA = 720 * 720  # pixels that are drawn where config.json does not say
NAMED = {
    "pad": "<|endoftext|>",
    "image": "<image>",
    "eol": "<|extra_200|>",
    "eof": "<|extra_201|>",
    "bos": "<|extra_203|>",
    "eos": "<|extra_204|>",
    "img": "<|image token|>",
    "boi": "<|image start|>",
    "eoi": "<|image end|>",
}
FIRST_CODE = "<|visual token 000000|>"
VISION = "model.vqmodel."


def official_config(data: Mapping[str, Any]) -> Emu3Config:
    """Sizes and ids from a config.json of either layout. `CheckpointError` for a model that this code cannot build."""
    return _authors(data) if data.get("model_type") == AUTHORS else _transformers(data)


def official_vq(data: Mapping[str, Any]) -> VQConfig:
    """Sizes of the image tokenizer from transformers' ``vq_config`` or the authors' own config.json."""
    renamed = {"z_channels": "latent_channels", "ch": "base_channels", "ch_mult": "channel_multiplier"}
    values = {renamed.get(name, name): value for name, value in data.items()}
    if values.get("double_latent") or values.get("double_z"):
        raise CheckpointError("config.json: an image tokenizer with double latents cannot be read")
    known = {name: values[name] for name in (f.name for f in fields(VQConfig)) if name in values}
    if "hidden_size" not in known and "ch" in data:  # the authors' attends at the width of the last level
        known["hidden_size"] = data["ch"] * data.get("ch_mult", VQConfig.channel_multiplier)[-1]
    return VQConfig(**known)


def official_defaults(data: Mapping[str, Any], codes_factor: int) -> GenerationDefaults:
    """The released scripts' settings: a square of the checkpoint's area, guidance 3."""
    side = round((data.get("image_area") or AREA) ** 0.5 / codes_factor)
    pixels = side * codes_factor
    return GenerationDefaults(side * side, guidance=3.0, shift=1.0, height=pixels, width=pixels, max_new_tokens=1024)


def _transformers(data: Mapping[str, Any]) -> Emu3Config:
    text, words = dict(data.get("text_config") or {}), data.get("vocabulary_map")
    vq = official_vq(data.get("vq_config") or {})
    if words is None:
        return Emu3Config(_text(text), Ids(), vq.codebook_size)
    if lacking := [name for name in (*NAMED.values(), FIRST_CODE) if name not in words]:
        # Only these have ids that config.json repeats.
        known = {"<|endoftext|>": "pad_token_id", "<|extra_203|>": "bos_token_id", "<|extra_204|>": "eos_token_id"}
        if any(known.get(name) not in text for name in lacking):
            raise CheckpointError(f"config.json: the vocabulary_map lacks {', '.join(lacking)}")
        words = {**words, **{name: text[known[name]] for name in lacking}}
    first, last = words[FIRST_CODE], f"<|visual token {vq.codebook_size - 1:06d}|>"
    if words.get(last) != first + vq.codebook_size - 1:
        raise CheckpointError(
            f"config.json: the vocabulary has no run of {vq.codebook_size} visual tokens from {first} on"
        )
    ids = Ids(**{name: words[word] for name, word in NAMED.items()}, first=first)
    return Emu3Config(_text(text), ids, vq.codebook_size)


def _authors(data: Mapping[str, Any]) -> Emu3Config:
    known = Ids()
    ids = {
        name: data.get(f"{name}_token_id", getattr(known, name))
        for name in ("pad", "bos", "eos", "img", "boi", "eoi", "eol", "eof")
    }
    # The codes follow the marks of images; <|extra_0|>, which nothing else uses, stands for a picture.
    first, text = ids["eoi"] + 1, _text(data)
    return Emu3Config(text, Ids(**ids, image=ids["pad"] + 3, first=first), text.vocab_size - first)


def _text(data: Mapping[str, Any]) -> TextConfig:
    values = {name: data[name] for name in (f.name for f in fields(TextConfig)) if data.get(name) is not None}
    rope = data.get("rope_parameters") or {}
    values |= {"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {}
    scaled = data.get("rope_scaling") or (rope if rope.get("rope_type", "default") != "default" else None)
    odd = {
        "attention_bias": data.get("attention_bias"),
        "mlp_bias": data.get("mlp_bias"),
        "tie_word_embeddings": data.get("tie_word_embeddings"),
        "rope_scaling": scaled,
        "hidden_act": None if data.get("hidden_act", "silu") == "silu" else data["hidden_act"],
    }
    if strange := [f"{name} = {value!r}" for name, value in odd.items() if value]:
        raise CheckpointError(f"config.json: {', '.join(strange)}: this is not Emu3's architecture")
    return TextConfig(**values)


# -- key names -------------------------------------------------------------------------------------------------------
def renamed(name: str) -> str:
    """Our (transformers' class) name of a tensor of either layout's language model."""
    for old, new in (("text_model.model.", "model.text_model."), ("text_model.lm_head.", "lm_head.")):
        if name.startswith(old):
            return new + name.removeprefix(old)
    if name.startswith("vqmodel."):
        return "model." + name
    if name.startswith("model.") and not name.startswith(("model.text_model.", VISION)):
        return "model.text_model." + name.removeprefix("model.")
    return name


PROJECTIONS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "proj_out": "out_proj"}


def vq_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The image tokenizer's tensors under our names, from the authors' (1x1 convolutions become matrices) or ours."""
    found = {}
    for name, value in weights.items():
        new = name.removeprefix(VISION)
        for old, part in ((".down.", ".down_block.down."), (".up.", ".up_block.up."), (".mid.", ".middle_block.")):
            if part not in new:
                new = new.replace(old, part, 1)
        new = re.sub(r"\.attn_1\.norm\.", ".attn_norm.", new)
        new = re.sub(r"\.attn\.(\d+)\.norm\.", r".attn_norms.\1.", new)
        if match := re.search(r"\.(attn_1|attn\.\d+)\.(q|k|v|proj_out)\.(weight|bias)$", new):
            new = f"{new[: match.start(2)]}{PROJECTIONS[match[2]]}.{match[3]}"
            value = value[:, :, 0, 0] if value.ndim == 4 else value
        found[new] = value
    return found
