"""Janus-Pro, as the registry finds it."""

from __future__ import annotations

from typing import Any

from flashu.errors import FlashUError
from flashu.models.family import Checkpoint, Family
from flashu.models.hub import checkpoint_folder
from flashu.models.janus.config import JanusConfig, TextConfig, VQConfig
from flashu.models.janus.layout import sizes_of
from flashu.models.janus.load import defaults_of, load_processor, read_config
from flashu.models.janus.public import Janus
from flashu.plan.explain import Sizes

OFFICIAL = {
    "deepseek-community/Janus-Pro-1B": JanusConfig(),
    "deepseek-community/Janus-Pro-7B": JanusConfig(
        TextConfig(
            hidden_size=4096,
            intermediate_size=11008,
            num_hidden_layers=30,
            num_attention_heads=32,
            num_key_value_heads=32,
        ),
        vq=VQConfig(projection_dim=4096),
    ),
}


def sizes(checkpoint: Checkpoint) -> Sizes:
    """The official checkpoints' need no connection, others fetch their config.json."""
    config = OFFICIAL.get(checkpoint.name)
    if config is None:
        config = read_config(checkpoint_folder(checkpoint.source, ("config.json",)))
    return sizes_of(checkpoint.name, config, defaults_of(config))


def reference(model: Any, processor: Any) -> Any:
    raise FlashUError("there is no original program of Janus-Pro here yet: compare with transformers' class")


FAMILY = Family(
    name="janus",
    title="Janus-Pro",
    matches=lambda config: config.get("model_type") == "janus",
    load=Janus._load,
    sizes=sizes,
    reference=reference,
    processor=lambda checkpoint: load_processor(checkpoint.source, autoencoder=None),
)
