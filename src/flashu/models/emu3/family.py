"""Emu3, as the registry finds it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flashu.models.defaults import GenerationDefaults
from flashu.models.emu3.config import Emu3Config
from flashu.models.emu3.dropin.handle import DropIn
from flashu.models.emu3.dropin.scripts import answering, drawing
from flashu.models.emu3.layout import sizes_of
from flashu.models.emu3.load import Manifest, load_processor, read_manifest, save_model
from flashu.models.emu3.official import AUTHORS, TRANSFORMERS, official_defaults, official_vq
from flashu.models.emu3.public import Emu3
from flashu.models.emu3.random import NAMED, named_model
from flashu.models.emu3.reference import Reference
from flashu.models.emu3.tuning import ROUTINGS, ROWS, Tuning, recognizes
from flashu.models.family import Checkpoint, Family
from flashu.models.hub import checkpoint_folder
from flashu.models.sizes import build, described
from flashu.plan.explain import Sizes
from flashu.scenes.world import World

OFFICIAL = {
    "BAAI/Emu3-Gen": 720 * 720,
    "BAAI/Emu3-Chat": 512 * 512,
    "BAAI/Emu3-Stage1": 512 * 512,
    "BAAI/Emu3-Gen-hf": 720 * 720,
    "BAAI/Emu3-Chat-hf": 512 * 512,
}
"""Pixels of the images that they draw or were trained on."""


def matches(config: Mapping[str, Any]) -> bool:
    return config.get("model_type") in (TRANSFORMERS, AUTHORS)


def sizes(checkpoint: Checkpoint) -> Sizes:
    """The official checkpoints' need no connection, others fetch their config.json."""
    name = checkpoint.name
    factor = official_vq({}).factor
    if name in OFFICIAL:
        return sizes_of(name, Emu3Config(), official_defaults({"image_area": OFFICIAL[name]}, factor), factor)
    manifest = read_manifest(checkpoint_folder(checkpoint.source, ("config.json",)))
    with described(manifest.folder, "config.json does not say how the model is run"):
        return _sizes_of(name, manifest)


def _sizes_of(name: str, manifest: Manifest) -> Sizes:
    if manifest.official:
        factor = official_vq(manifest.data.get("vq_config") or {}).factor
        return sizes_of(name, manifest.config, official_defaults(manifest.data, factor), factor)
    defaults = build(GenerationDefaults, "defaults", manifest.data["defaults"])
    return sizes_of(name, manifest.config, defaults, round((defaults.height * defaults.width / defaults.steps) ** 0.5))


def trainer(world: World, seed: int, start: Path | None = None) -> Any:
    """See `training.ScenesEmu3`, which only training imports."""
    from flashu.models.emu3.training import ScenesEmu3

    return ScenesEmu3.create(world, seed, start)


FAMILY = Family(
    name="emu3",
    title="Emu3",
    matches=matches,
    load=Emu3._load,
    sizes=sizes,
    reference=Reference,
    save=save_model,
    processor=lambda checkpoint: load_processor(checkpoint.source, autoencoder=None),
    recognizes=recognizes,
    authors=DropIn,
    scripts={"t2i": drawing, "mmu": answering},
    random=named_model,
    random_sizes=tuple(NAMED),
    trainer=trainer,
    tuning=Tuning,
    tunes=recognizes,
    training_rows=ROWS,
    routings=ROUTINGS,
)
