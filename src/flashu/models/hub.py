"""Checkpoint folders: on this machine, or fetched from the Hugging Face hub."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from flashu.errors import CheckpointError, FlashUError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
PATTERNS = ("config.json", "tokenizer.json", "*.index.json", "*.safetensors", "*.bin")
# A connection that fails is an OSError under older versions of the hub's client, a kind of its own under newer ones.
UNREACHABLE: tuple[type[BaseException], ...] = (OSError, HFValidationError, *HfHubHTTPError.__bases__)


def checkpoint_folder(
    source: str | os.PathLike[str],
    patterns: tuple[str, ...] | None = PATTERNS,
    revision: str | None = None,
    token: str | None = None,
) -> Path:
    """The folder of a checkpoint: ``source`` itself, or, for a hub id, the files matching ``patterns`` (None: all)
    fetched. ``revision``: branch, tag or commit; ``token``: of an account that may read it."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(f"{folder} is a file: give the folder it lies in")
    name = str(source)
    if not HUB_ID.fullmatch(name):
        raise CheckpointError(f"{name!r} is neither a folder here nor a hub id like 'showlab/show-o2-1.5B'")
    try:
        return Path(
            snapshot_download(
                name, revision=revision, token=token, allow_patterns=None if patterns is None else list(patterns)
            )
        )
    except (OSError, HFValidationError) as e:  # offline, not found and not allowed are all kinds of OSError
        raise CheckpointError(
            f"{name} could not be fetched from the Hugging Face hub ({str(e).strip().splitlines()[0]}). "
            f"Without a connection, run `hf download {name} --local-dir FOLDER` on a machine that has one, "
            "bring the folder here and give its path instead of the name."
        ) from e


def upload(
    folder: str | Path,
    repo_id: str,
    commit_message: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    create_pr: bool = False,
) -> str:
    """Put a folder's files into a hub repository, made if need be; returns the address of the commit."""
    api = HfApi(token=token)
    try:
        name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        message = commit_message or "Upload with flashu"
        done = api.upload_folder(repo_id=name, folder_path=folder, commit_message=message, create_pr=create_pr)
    except UNREACHABLE as e:
        reason = next(iter(str(e).strip().splitlines()), type(e).__name__)
        status = getattr(getattr(e, "response", None), "status_code", None)
        remedy = (
            "Log in with `hf auth login`, or give a token that may write there."
            if status in (401, 403)
            else f"Without a connection, use save_pretrained(FOLDER) and run `hf upload {repo_id} FOLDER` on a machine "
            "that has one."
        )
        raise FlashUError(f"{repo_id} could not be written to the Hugging Face hub ({reason}). {remedy}") from e
    return str(done)


class Pushed:
    """What can be saved can be pushed: `push_to_hub` for a class with ``save_pretrained(folder)``."""

    save_pretrained: Callable[..., None]

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Save to a repository of the Hugging Face hub, made if need be; returns the address of the commit."""
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return upload(folder, repo_id, commit_message, private, token, create_pr)
