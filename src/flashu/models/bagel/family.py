"""BAGEL, as the registry finds it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flashu.models.bagel.config import BagelConfig
from flashu.models.bagel.dropin.adopt import recognizes
from flashu.models.bagel.dropin.handle import DropIn
from flashu.models.bagel.layout import sizes_of
from flashu.models.bagel.load import load_processor, read_manifest, save_model
from flashu.models.bagel.official import official_defaults
from flashu.models.bagel.public import Bagel
from flashu.models.bagel.random import NAMED, named_model
from flashu.models.bagel.reference import Reference
from flashu.models.family import Checkpoint, Family
from flashu.models.hub import checkpoint_folder
from flashu.plan.explain import Sizes
from flashu.scenes.world import World

OFFICIAL = ("ByteDance-Seed/BAGEL-7B-MoT",)


def matches(config: Mapping[str, Any]) -> bool:
    return config.get("model_type") == "bagel" or "llm_config" in config


def sizes(checkpoint: Checkpoint) -> Sizes:
    """The official checkpoint's need no connection, others fetch their config.json."""
    if checkpoint.name in OFFICIAL:
        config = BagelConfig()
        return sizes_of(checkpoint.name, config, official_defaults(config))
    manifest = read_manifest(checkpoint_folder(checkpoint.source, ("*.json",)))
    if manifest.official or "defaults" not in manifest.data:
        return sizes_of(checkpoint.name, manifest.config, official_defaults(manifest.config))
    processor = load_processor(checkpoint.source, autoencoder=None)
    return sizes_of(checkpoint.name, manifest.config, processor.defaults, processor)


def trainer(world: World, seed: int, start: Path | None = None) -> Any:
    """See `training.ScenesBagel`, which only training imports."""
    from flashu.models.bagel.training import ScenesBagel

    return ScenesBagel.create(world, seed, start)


FAMILY = Family(
    name="bagel",
    title="BAGEL",
    matches=matches,
    load=Bagel._load,
    sizes=sizes,
    reference=Reference,
    save=save_model,
    processor=lambda checkpoint: load_processor(checkpoint.source, autoencoder=None),
    # The authors' evaluation scripts: no image branch where nothing is shown.
    benchmarks={
        "geneval": {"image_guidance": 1.0, "interval": (0.0, 1.0)},
        "gedit": {"renorm": "text_channel"},
        "imgedit": {"renorm": "text_channel", "interval": (0.0, 1.0)},
    },
    recognizes=recognizes,
    authors=DropIn,
    random=named_model,
    random_sizes=tuple(NAMED),
    trainer=trainer,
)
