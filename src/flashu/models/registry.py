"""What can be loaded by name, and where it would come from."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from flashu.errors import CheckpointError
from flashu.models.hub import HUB_ID
from flashu.models.showo2.load import Device, load_model, load_processor
from flashu.models.showo2.model import ShowO2
from flashu.models.showo2.processor import Processor

ASSETS = Path(__file__).resolve().parents[1] / "assets"


@dataclass(frozen=True)
class Entry:
    """A name and what it stands for. ``dtype`` None: as stored."""

    name: str
    source: str | Path
    summary: str
    dtype: torch.dtype | None = None

    @property
    def where(self) -> str:
        if not isinstance(self.source, Path):
            return f"Hugging Face hub, {self.source}"
        return "in the package" if self.source.is_relative_to(ASSETS) else f"folder {self.source}"


SCENES = Entry("scenes", ASSETS / "scenes", "a small Show-o2 for coloured shapes, 64 px; runs anywhere", torch.float32)
HARD = Entry("scenes-hard", ASSETS / "scenes-hard", "the same for a larger world, 128 px", torch.float32)
ENTRIES = (
    SCENES,
    HARD,
    Entry("showlab/show-o2-1.5B", "showlab/show-o2-1.5B", "Show-o2 on Qwen2.5-1.5B, 432 px; 2.8 B parameters in all"),
    Entry("showlab/show-o2-1.5B-HQ", "showlab/show-o2-1.5B-HQ", "the same for 512 and 1024 px"),
    Entry("showlab/show-o2-7B", "showlab/show-o2-7B", "Show-o2 on Qwen2.5-7B, 432 px; 8.9 B parameters in all"),
    Entry("showlab/show-o2-1.5B-w-video-und", "showlab/show-o2-1.5B-w-video-und", "the 1.5B that has seen videos too"),
    Entry("showlab/show-o2-7B-w-video-und", "showlab/show-o2-7B-w-video-und", "the 7B that has seen videos too"),
)


def resolve(name: str | os.PathLike[str]) -> Entry:
    """The entry of a known name, a folder or a hub id; anything else raises ``CheckpointError``."""
    for entry in ENTRIES:
        if entry.name == str(name):
            return entry
    folder = Path(name).expanduser()
    if folder.is_dir():
        return Entry(str(name), folder, "a checkpoint folder")
    known = [entry.name for entry in ENTRIES]
    if HUB_ID.fullmatch(str(name)) and not folder.exists():
        return Entry(str(name), str(name), "a hub repository")
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}; or give a folder or a hub id"
    raise CheckpointError(f"there is no model {str(name)!r}: {hint}")


def open_model(
    name: str | os.PathLike[str], dtype: torch.dtype | None = None, device: Device = None, around: Device = None
) -> tuple[ShowO2, Processor]:
    """The model of a name and what surrounds it, on ``around`` (None: there, too); the processor first, so that small
    faults show before big reads."""
    entry = resolve(name)
    processor = load_processor(entry.source, around or device)
    return load_model(entry.source, dtype or entry.dtype, device), processor
