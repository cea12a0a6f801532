"""Show-o, as the registry finds it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flashu.errors import CheckpointError
from flashu.models.defaults import GenerationDefaults
from flashu.models.family import Checkpoint, Family
from flashu.models.hub import checkpoint_folder
from flashu.models.showo.codecs import CELLS
from flashu.models.showo.dropin.adopt import recognizes
from flashu.models.showo.dropin.handle import DropIn
from flashu.models.showo.dropin.scripts import answering, drawing
from flashu.models.showo.layout import sizes_of
from flashu.models.showo.load import load_processor, read_manifest, save_model
from flashu.models.showo.official import official_config, official_defaults
from flashu.models.showo.processor import FACTOR
from flashu.models.showo.public import ShowO
from flashu.models.showo.random import NAMED, named_model
from flashu.models.showo.reference import Reference
from flashu.models.showo.tuning import ROUTINGS, ROWS, Tuning
from flashu.models.showo.tuning import recognizes as tuned
from flashu.models.sizes import build, described
from flashu.models.small_vq import FACTOR as CELL
from flashu.plan.explain import Sizes
from flashu.scenes.world import World

# What differs in the config.json of the released checkpoints: codes of an image, pictures shown by CLIP.
OFFICIAL = {
    "showlab/show-o": (256, False),
    "showlab/show-o-512x512": (1024, False),
    "showlab/show-o-w-clip-vit": (256, True),
    "showlab/show-o-w-clip-vit-512x512": (1024, True),
}


def matches(config: Mapping[str, Any]) -> bool:
    return config.get("model_type") == "showo" or "codebook_size" in config


def sizes(checkpoint: Checkpoint) -> Sizes:
    """The official checkpoints' need no connection, others fetch their config.json."""
    name = checkpoint.name
    if name in OFFICIAL:
        count, clip = OFFICIAL[name]
        data = {"vocab_size": 58498, "llm_vocab_size": 50295, "num_vq_tokens": count, "w_clip_vit": clip}
        config = official_config(data)
        return sizes_of(name, config, official_defaults(config))
    manifest = read_manifest(checkpoint_folder(checkpoint.source, ("config.json",)))
    if manifest.official:
        return sizes_of(name, manifest.config, official_defaults(manifest.config))
    about = manifest.data
    if "defaults" not in about or "codec" not in about:
        raise CheckpointError(f"{manifest.folder}: config.json does not say how the model is run")
    with described(manifest.folder, "config.json does not say how the model is run"):
        defaults = build(GenerationDefaults, "defaults", about["defaults"])
        factor = CELL if about["codec"] == CELLS else FACTOR
        return sizes_of(name, manifest.config, defaults, factor)


def trainer(world: World, seed: int, start: Path | None = None) -> Any:
    """See `training.ScenesShowO`, which only training imports."""
    from flashu.models.showo.training import ScenesShowO

    return ScenesShowO.create(world, seed, start)


FAMILY = Family(
    name="showo",
    title="Show-o",
    matches=matches,
    load=ShowO._load,
    sizes=sizes,
    reference=Reference,
    save=save_model,
    processor=lambda checkpoint: load_processor(checkpoint.source, autoencoder=None, clip=None),
    recognizes=recognizes,
    authors=DropIn,
    scripts={"t2i": drawing, "mmu": answering},
    random=named_model,
    random_sizes=tuple(NAMED),
    # The scripts of the authors' README, for 512 px.
    benchmarks={"geneval": {"steps": 50, "guidance": 5.0}, "dpg": {"steps": 50, "guidance": 5.0}},
    trainer=trainer,
    tuning=Tuning,
    tunes=tuned,
    training_rows=ROWS,
    routings=ROUTINGS,
)
