"""Checkpoint folders: on this machine, or fetched from the Hugging Face hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError

from flashu.errors import CheckpointError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
PATTERNS = ("config.json", "tokenizer.json", "*.index.json", "*.safetensors", "*.bin")


def checkpoint_folder(source: str | os.PathLike[str], patterns: tuple[str, ...] = PATTERNS) -> Path:
    """The folder of a checkpoint: ``source`` itself, or, for a hub id, the files matching ``patterns`` fetched."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(f"{folder} is a file: give the folder it lies in")
    name = str(source)
    if not HUB_ID.fullmatch(name):
        raise CheckpointError(f"{name!r} is neither a folder here nor a hub id like 'showlab/show-o2-1.5B'")
    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except (OSError, HFValidationError) as e:  # offline, not found and not allowed are all kinds of OSError
        raise CheckpointError(
            f"{name} could not be fetched from the Hugging Face hub ({str(e).strip().splitlines()[0]}). "
            f"Without a connection, run `hf download {name} --local-dir FOLDER` on a machine that has one, "
            "bring the folder here and give its path instead of the name."
        ) from e
