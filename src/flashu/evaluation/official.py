"""GenEval and DPG-Bench: their prompt files, and the files their scorers read."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from flashu.errors import FlashUError

SAMPLES = 4
"""Images of each prompt."""


@dataclass(frozen=True)
class Item:
    """One prompt. ``index`` counts over the whole benchmark, ``name`` is its folder or file."""

    index: int
    name: str
    prompt: str
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Benchmark(ABC):
    """``kind``: its name in `Family.benchmarks`. ``digest``: 16 hex digits of the prompts and names."""

    kind: ClassVar[str]

    items: tuple[Item, ...]
    digest: str

    @abstractmethod
    def path(self, out: Path, item: Item) -> Path:
        """The file or folder that appears at once when an item is finished."""

    @abstractmethod
    def write(self, images: Sequence[Image.Image], item: Item, part: Path) -> None:
        """Write an item's images at ``part``, which is then moved to `path`."""

    def done(self, out: Path, item: Item) -> bool:
        return self.path(out, item).exists()


class GenEval(Benchmark):
    """DIR/00000/{metadata.jsonl, grid.png, samples/0000.png ...}, one folder per line of the metadata file."""

    kind = "geneval"

    @classmethod
    def read(cls, prompts: Path) -> GenEval:
        """From evaluation_metadata.jsonl (or a rewritten one): one object with a prompt per line."""
        lines = [line for line in _text(prompts).splitlines() if line.strip()]
        entries = [_parsed(line, f"{prompts} line {n}") for n, line in enumerate(lines, 1)]
        return cls(*_checked(prompts, {f"{n:05d}": entry for n, entry in enumerate(entries)}))

    def path(self, out: Path, item: Item) -> Path:
        return out / item.name

    def write(self, images: Sequence[Image.Image], item: Item, part: Path) -> None:
        (part / "samples").mkdir(parents=True)
        for n, image in enumerate(images):
            image.save(part / "samples" / f"{n:04d}.png")
        grid(images).save(part / "grid.png")
        (part / "metadata.jsonl").write_text(json.dumps(item.metadata), encoding="utf-8")

    def done(self, out: Path, item: Item) -> bool:
        folder = self.path(out, item)
        wanted = ["metadata.jsonl", *(f"samples/{n:04d}.png" for n in range(SAMPLES))]
        if folder.exists() and (lacking := [name for name in wanted if not (folder / name).is_file()]):
            raise FlashUError(f"{folder} was written by something else and lacks {lacking[0]}: move it away")
        return folder.exists()


class DPG(Benchmark):
    """DIR/NAME.png, a 2x2 grid per prompt, without margins: the scorer cuts it at multiples of the resolution."""

    kind = "dpg"

    @classmethod
    def read(cls, prompts: Path) -> DPG:
        """From dpg_bench_meta_data.json, or from DPG-Bench's folder with one text file per prompt."""
        if prompts.is_dir():
            entries: Any = [
                {"prompt": _text(f).strip(), "prompt_file_name": f.stem} for f in sorted(prompts.glob("*.txt"))
            ]
        else:
            entries = _parsed(_text(prompts), str(prompts))
        if not isinstance(entries, list):
            raise FlashUError(f"{prompts}: holds no list of prompts")
        named: dict[str, Any] = {}
        for entry in entries:
            name = entry.get("prompt_file_name") if isinstance(entry, dict) else None
            if not isinstance(name, str) or Path(name).name != name or "." in name:
                raise FlashUError(f"{prompts}: {name!r} cannot be the name of an image; is this a DPG-Bench file?")
            if name in named:
                raise FlashUError(f"{prompts}: two prompts have the name {name}")
            named[name] = entry
        return cls(*_checked(prompts, named))

    def path(self, out: Path, item: Item) -> Path:
        return out / f"{item.name}.png"

    def write(self, images: Sequence[Image.Image], item: Item, part: Path) -> None:
        grid(images).save(part, format="PNG")


def grid(images: Sequence[Image.Image]) -> Image.Image:
    """Four images as two rows of two."""
    width, height = images[0].size
    whole = Image.new("RGB", (2 * width, height * -(-len(images) // 2)), "white")
    for n, image in enumerate(images):
        whole.paste(image, (n % 2 * width, n // 2 * height))
    return whole


def _checked(file: Path, entries: dict[str, Any]) -> tuple[tuple[Item, ...], str]:
    """The items of entries by name, and their digest."""
    items = []
    for index, (name, entry) in enumerate(entries.items()):
        prompt = entry.get("prompt") if isinstance(entry, dict) else None
        if not isinstance(prompt, str) or not prompt.strip():
            raise FlashUError(f"{file}: entry {index + 1} has no prompt")
        items.append(Item(index, name, prompt, entry))
    if not items:
        raise FlashUError(f"{file}: there are no prompts in it")
    listed = json.dumps([[item.name, item.prompt, item.metadata] for item in items], sort_keys=True)
    return tuple(items), hashlib.sha256(listed.encode()).hexdigest()[:16]


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise FlashUError(f"{where} is not JSON: {error}") from error


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FlashUError(f"{file} cannot be read: {error}") from error
