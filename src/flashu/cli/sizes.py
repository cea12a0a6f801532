"""Sizes of a model without its weights: from its config.json, or known for the official checkpoints."""

from __future__ import annotations

from typing import Any

from flashu.errors import CheckpointError
from flashu.models.hub import checkpoint_folder
from flashu.models.registry import resolve
from flashu.models.showo2.load import read_manifest
from flashu.models.showo2.official import max_text, official_config, official_defaults
from flashu.models.showo2.processor import GenerationDefaults
from flashu.plan.explain import Sizes
from flashu.scenes.autoencoder import DOWNSAMPLE

SMALL, LARGE = "Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen2.5-7B-Instruct"
WAN_FACTOR = 8
# (language model, side of the latent grid in tokens) as the checkpoints' config.json state them
OFFICIAL = {
    "showlab/show-o2-1.5B": (SMALL, 27),
    "showlab/show-o2-1.5B-HQ": (SMALL, 32),
    "showlab/show-o2-7B": (LARGE, 27),
    "showlab/show-o2-1.5B-w-video-und": (SMALL, 27),
    "showlab/show-o2-7B-w-video-und": (LARGE, 27),
}


def sizes_of(name: str) -> Sizes:
    """The sizes of a name, folder or hub id. The official ones need no connection, others fetch their config.json."""
    if name in OFFICIAL:
        llm, side = OFFICIAL[name]
        config = official_config({"llm_model_path": llm, "image_latent_height": side, "image_latent_width": side})
        return Sizes(name, config, official_defaults(config), WAN_FACTOR, max_text(config))
    manifest = read_manifest(checkpoint_folder(resolve(name).source, ("config.json",)))
    if manifest.official:
        config = manifest.config
        return Sizes(name, config, official_defaults(config), WAN_FACTOR, max_text(config))
    about: dict[str, Any] = manifest.data
    if "defaults" not in about or "max_text" not in about:
        raise CheckpointError(f"{manifest.folder}: config.json does not say how the model is run")
    factor = DOWNSAMPLE if about["autoencoder"] == "scenes" else WAN_FACTOR
    return Sizes(name, manifest.config, GenerationDefaults(**about["defaults"]), factor, about["max_text"])
