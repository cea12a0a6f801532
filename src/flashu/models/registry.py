"""What can be loaded by name, where it would come from, and which family it is."""

from __future__ import annotations

import difflib
import os
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache

from flashu.errors import CheckpointError, FlashUError
from flashu.models.family import Checkpoint, Family
from flashu.models.fit import Holding, check_fits
from flashu.models.hub import HUB_ID, checkpoint_folder
from flashu.models.place import find_device, find_dtype
from flashu.models.weights import read_json, weight_files
from flashu.plan.presets import RecipeSource, load_recipe

FAMILIES = {
    "showo2": "flashu.models.showo2.family",
    "emu3": "flashu.models.emu3.family",
    "showo": "flashu.models.showo.family",
    "bagel": "flashu.models.bagel.family",
    "janus": "flashu.models.janus.family",
}
"""The module of each family, whose FAMILY says what it offers; imported when first asked for."""

ASSETS = Path(__file__).resolve().parents[1] / "assets"
CHECKPOINTS = (
    *(
        Checkpoint(name, ASSETS / name, summary, torch.float32, family, demo=name in ("scenes", "scenes-bagel"))
        for name, family, summary in (
            ("scenes", "showo2", "a small Show-o2 for coloured shapes, 64 px; runs anywhere"),
            ("scenes-hard", "showo2", "the same for a larger world, 128 px"),
            ("scenes-bagel", "bagel", "a small BAGEL for the world of scenes, which also edits"),
            ("scenes-showo", "showo", "a small Show-o for the world of scenes"),
            ("scenes-emu3", "emu3", "a small Emu3 for the world of scenes"),
        )
    ),
    *(
        Checkpoint(f"showlab/{name}", f"showlab/{name}", summary, family="showo2")
        for name, summary in (
            ("show-o2-1.5B", "Show-o2 on Qwen2.5-1.5B, 432 px; 2.8 B parameters in all"),
            ("show-o2-1.5B-HQ", "the same for 512 and 1024 px"),
            ("show-o2-7B", "Show-o2 on Qwen2.5-7B, 432 px; 8.9 B parameters in all"),
            ("show-o2-1.5B-w-video-und", "the 1.5B that has seen videos too"),
            ("show-o2-7B-w-video-und", "the 7B that has seen videos too"),
        )
    ),
    *(
        Checkpoint(f"BAAI/{name}", f"BAAI/{name}", summary, family="emu3")
        for name, summary in (
            ("Emu3-Gen", "Emu3 for drawing, 720 px; 8.8 B parameters in all"),
            ("Emu3-Chat", "Emu3 for answering"),
            ("Emu3-Stage1", "the model that both come from, 512 px"),
            ("Emu3-Gen-hf", "Emu3-Gen as transformers has it, its image tokenizer included"),
            ("Emu3-Chat-hf", "Emu3-Chat as transformers has it, its image tokenizer included"),
        )
    ),
    *(
        Checkpoint(f"showlab/{name}", f"showlab/{name}", summary, family="showo")
        for name, summary in (
            ("show-o", "Show-o on Phi-1.5, 256 px; 1.4 B parameters"),
            ("show-o-512x512", "the same for 512 px"),
            ("show-o-w-clip-vit", "Show-o shown pictures by CLIP, 256 px; 1.5 B parameters and the vision tower"),
            ("show-o-w-clip-vit-512x512", "the same for 512 px"),
        )
    ),
    Checkpoint(
        "ByteDance-Seed/BAGEL-7B-MoT",
        "ByteDance-Seed/BAGEL-7B-MoT",
        "BAGEL on Qwen2.5-7B, two experts, 1024 px; 14.6 B parameters in all",
        family="bagel",
    ),
    *(
        Checkpoint(f"deepseek-community/{name}", f"deepseek-community/{name}", summary, family="janus")
        for name, summary in (
            ("Janus-Pro-1B", "Janus-Pro on a decoder of 24 layers, 384 px, as transformers has it"),
            ("Janus-Pro-7B", "Janus-Pro on a decoder of 30 layers, 384 px, as transformers has it"),
        )
    ),
)


def family(name: str) -> Family:
    """The family of a name, as `ModelSpec.family` has it."""
    return import_module(FAMILIES[name]).FAMILY


def families() -> list[Family]:
    return [family(name) for name in FAMILIES]


def family_of(checkpoint: Checkpoint) -> Family:
    """The family that a checkpoint is known to be of, or that its config.json describes; `CheckpointError` if none
    does."""
    if checkpoint.family is not None:
        return family(checkpoint.family)
    folder = checkpoint_folder(checkpoint.source, ("config.json",))
    file = folder / "config.json"
    # Some checkpoints describe their parts in files of their own, and nothing else.
    apart = {} if file.is_file() else {path.stem: None for path in sorted(folder.glob("*_config.json"))}
    data = apart or read_json(file)
    for known in families():
        if known.matches(data):
            return known
    kind = data.get("model_type") or data.get("_class_name") or "an unknown model"
    titles = ", ".join(known.title for known in families())
    raise CheckpointError(f"{folder}: config.json describes {kind!r}, not one of {titles}; is it the right folder?")


def where(checkpoint: Checkpoint) -> str:
    """Where a checkpoint comes from, in words."""
    if not isinstance(checkpoint.source, Path):
        return f"Hugging Face hub, {checkpoint.source}"
    return "in the package" if checkpoint.source.is_relative_to(ASSETS) else f"folder {checkpoint.source}"


def is_here(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint and its weights are on this machine already."""
    folder = checkpoint.source
    if not isinstance(folder, Path):
        cached = try_to_load_from_cache(folder, "config.json")
        if not isinstance(cached, str):
            return False
        folder = Path(cached).parent
    try:
        return bool(weight_files(folder))
    except CheckpointError:
        return False


def resolve(name: str | os.PathLike[str]) -> Checkpoint:
    """The checkpoint of a known name, a folder or a hub id; anything else raises ``CheckpointError``."""
    for checkpoint in CHECKPOINTS:
        if checkpoint.name == str(name):
            return checkpoint
    folder = Path(name).expanduser()
    if folder.is_dir():
        return Checkpoint(str(name), folder, "a checkpoint folder")
    known = [checkpoint.name for checkpoint in CHECKPOINTS]
    if HUB_ID.fullmatch(str(name)) and not folder.exists():
        return Checkpoint(str(name), str(name), "a hub repository")
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}; or give a folder or a hub id"
    raise CheckpointError(f"there is no model {str(name)!r}: {hint}")


def open_model(
    source: str | os.PathLike[str],
    *,
    recipe: RecipeSource = "exact",
    in_place: bool = False,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | int | None = None,
    **options: Any,
) -> Any:
    """The model of a name, folder or hub id, with its ``processor`` and ``calibration``; options as of its family's
    ``from_pretrained``. ``dtype``: as stored unless given; ``device``: CUDA where there is one unless given.
    ``recipe``, ``in_place``: what it is opened for. `FlashUError`, before anything is read, where the weights that this
    takes are more than there is memory for."""
    checkpoint = resolve(source)
    known, dtype, device = family_of(checkpoint), find_dtype(dtype), find_device(device)
    placed = {"quantize": options.get("quantize"), "offload": options.get("offload", False)}
    placed |= {"pack": options.get("pack", False), "part": options.get("parts")}
    holding = Holding(device, dtype or checkpoint.dtype, in_place=in_place, **placed)
    check_room(checkpoint, holding, recipe)
    return known.load(checkpoint, dtype=dtype, device=device, **options)


def check_room(checkpoint: Checkpoint, holding: Holding, recipe: RecipeSource = "exact") -> None:
    """See `check_fits`. What cannot be read yet (a config.json, a preset tuned on weights) is for those to refuse who
    read it."""
    try:
        sizes = family_of(checkpoint).sizes(checkpoint)
    except FlashUError:
        return
    try:
        applied = load_recipe(recipe)
    except FlashUError:
        applied = None
    check_fits(sizes, holding, applied)
