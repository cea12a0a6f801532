"""What a folder of results knows of itself: how it was made, what is finished, how long each item took.

DIR/manifest.json, DIR/summary.json and, one small file per item, DIR/.flashu/. Every file appears whole or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from flashu.errors import FlashUError
from flashu.evaluation.shard import Shard

MANIFEST, SUMMARY, RECORDS = "manifest.json", "summary.json", ".flashu"


class Ledger:
    """The records of one process. ``drafts`` is a place for files that are not finished, emptied at the start."""

    def __init__(self, out: Path, shard: Shard) -> None:
        self.out = out
        self.records = out / RECORDS
        self.drafts = self.records / f"drafts-{shard.index}-of-{shard.count}"
        try:
            shutil.rmtree(self.drafts, ignore_errors=True)
            self.drafts.mkdir(parents=True)
        except OSError as error:
            raise FlashUError(f"{out} cannot be written: {error.strerror or error}") from error

    def open(self, identity: dict[str, Any]) -> None:
        """Note how these results are made; `FlashUError` if the folder holds results made another way."""
        identity = json.loads(json.dumps(identity))
        file = self.out / MANIFEST
        if not file.exists():
            self.write(file, identity)
            return
        known = json.loads(file.read_text(encoding="utf-8"))
        known.pop("times", None)
        if differing := [key for key in sorted({*known, *identity}) if known.get(key) != identity.get(key)]:
            was = ", ".join(f"{key} {known.get(key)!r} (now {identity.get(key)!r})" for key in differing[:3])
            raise FlashUError(f"{self.out} holds results made with {was}: take another folder")

    def record(self, name: str, facts: dict[str, Any]) -> None:
        self.write(self.records / f"{name}.json", facts)

    def recorded(self, name: str) -> dict[str, Any] | None:
        file = self.records / f"{name}.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None

    def finish(self, times: dict[str, Any], summary: dict[str, Any]) -> None:
        """Add the times to the manifest and write the summary."""
        manifest = json.loads((self.out / MANIFEST).read_text(encoding="utf-8"))
        self.write(self.out / MANIFEST, manifest | {"times": times})
        self.write(self.out / SUMMARY, summary)

    def write(self, file: Path, value: dict[str, Any]) -> None:
        draft = self.drafts / f"{file.name}.part"
        draft.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(draft, file)

    def close(self) -> None:
        shutil.rmtree(self.drafts, ignore_errors=True)
