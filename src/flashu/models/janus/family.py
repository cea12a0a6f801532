"""Janus-Pro, as the registry finds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flashu.errors import FlashUError
from flashu.models.family import Checkpoint, Family
from flashu.models.hub import checkpoint_folder
from flashu.models.janus.config import PRO_1B, PRO_7B
from flashu.models.janus.layout import sizes_of
from flashu.models.janus.load import defaults_of, load_processor, read_config
from flashu.models.janus.public import Janus
from flashu.models.janus.random import NAMED, named_model
from flashu.models.janus.reference import Reference
from flashu.plan.explain import Sizes

OFFICIAL = {"deepseek-community/Janus-Pro-1B": PRO_1B, "deepseek-community/Janus-Pro-7B": PRO_7B}


def sizes(checkpoint: Checkpoint) -> Sizes:
    """The official checkpoints' need no connection, others fetch their config.json."""
    config = OFFICIAL.get(checkpoint.name)
    if config is None:
        config = read_config(checkpoint_folder(checkpoint.source, ("config.json",)))
    return sizes_of(checkpoint.name, config, defaults_of(config))


def save(model: Any, folder: Path, processor: Any) -> None:
    raise FlashUError("Janus-Pro models cannot be saved: keep the folder that this one was loaded from")


FAMILY = Family(
    name="janus",
    title="Janus-Pro",
    matches=lambda config: config.get("model_type") == "janus",
    load=Janus._load,
    sizes=sizes,
    reference=Reference,
    save=save,
    random=named_model,
    random_sizes=tuple(NAMED),
    processor=lambda checkpoint: load_processor(checkpoint.source, autoencoder=None),
)
