"""Show-o2, as the registry finds it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from flashu.errors import CheckpointError
from flashu.models.defaults import GenerationDefaults
from flashu.models.family import Checkpoint, Family
from flashu.models.hub import checkpoint_folder
from flashu.models.showo2.autoencoders import SCENES
from flashu.models.showo2.dropin.handle import DropIn
from flashu.models.showo2.dropin.scripts import answering, drawing
from flashu.models.showo2.layout import FACTOR, sizes_of
from flashu.models.showo2.load import load_processor, read_manifest, save_model
from flashu.models.showo2.official import max_text, official_config, official_defaults
from flashu.models.showo2.public import ShowO2
from flashu.models.showo2.random import NAMED, named_model
from flashu.models.showo2.reference import Reference
from flashu.models.sizes import build, check_limits, described
from flashu.models.small_autoencoder import DOWNSAMPLE
from flashu.plan.explain import Sizes
from flashu.scenes.world import World

SMALL, LARGE = "Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen2.5-7B-Instruct"
# (language model, side of the latent grid in tokens) as the checkpoints' config.json state them
OFFICIAL = {
    "showlab/show-o2-1.5B": (SMALL, 27),
    "showlab/show-o2-1.5B-HQ": (SMALL, 32),
    "showlab/show-o2-7B": (LARGE, 27),
    "showlab/show-o2-1.5B-w-video-und": (SMALL, 27),
    "showlab/show-o2-7B-w-video-und": (LARGE, 27),
}


def matches(config: Mapping[str, Any]) -> bool:
    # The family before it names its language model too, and has codes.
    return config.get("model_type") == "showo2" or ("llm_model_path" in config and "codebook_size" not in config)


def sizes(checkpoint: Checkpoint) -> Sizes:
    """The official checkpoints' need no connection, others fetch their config.json."""
    name = checkpoint.name
    if name in OFFICIAL:
        llm, side = OFFICIAL[name]
        config = official_config({"llm_model_path": llm, "image_latent_height": side, "image_latent_width": side})
        return sizes_of(name, config, official_defaults(config), max_text(config))
    manifest = read_manifest(checkpoint_folder(checkpoint.source, ("config.json",)))
    config = manifest.config
    if manifest.official:
        return sizes_of(name, config, official_defaults(config), max_text(config))
    about = manifest.data
    if "defaults" not in about or "max_text" not in about:
        raise CheckpointError(f"{manifest.folder}: config.json does not say how the model is run")
    with described(manifest.folder, "config.json does not say how the model is run"):
        check_limits(about)
        defaults = build(GenerationDefaults, "defaults", about["defaults"])
        factor = DOWNSAMPLE if about["autoencoder"] == SCENES else FACTOR
        return sizes_of(name, config, defaults, about["max_text"], factor)


def recognizes(module: nn.Module) -> bool:
    """Whether a module is an instance of the original authors' class, by the parts only it has."""
    return all(hasattr(module, part) for part in ("showo", "und_trans", "diffusion_head_a", "t2i_generate"))


def trainer(world: World, seed: int, start: Path | None = None) -> Any:
    """See `training.ScenesShowO2`, which only training imports."""
    from flashu.models.showo2.training import ScenesShowO2

    return ScenesShowO2.create(world, seed, start)


FAMILY = Family(
    name="showo2",
    title="Show-o2",
    matches=matches,
    load=ShowO2._load,
    sizes=sizes,
    reference=Reference,
    save=save_model,
    processor=lambda checkpoint: load_processor(checkpoint.source, autoencoder=None),
    recognizes=recognizes,
    authors=DropIn,
    scripts={"t2i": drawing, "mmu": answering},
    random=named_model,
    random_sizes=tuple(NAMED),
    # The scripts count time points, one more than forwards.
    benchmarks={"geneval": {"steps": 99, "guidance": 7.5}, "dpg": {"steps": 49, "guidance": 10.0}},
    trainer=trainer,
)
