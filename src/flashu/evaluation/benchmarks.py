"""GenEval and DPG-Bench: their prompt files, the settings of Show-o2's scripts, and the files their scorers read."""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from flashu.errors import FlashUError

SAMPLES = 4


@dataclass(frozen=True)
class Item:
    """One prompt. ``index`` counts over the whole benchmark, ``name`` is its folder or file, ``about`` its metadata."""

    index: int
    name: str
    prompt: str
    about: dict[str, Any]


@dataclass(frozen=True)
class Benchmark(ABC):
    """``digest``: 16 hex digits of the prompts and names. ``points``: time points of the authors' script."""

    kind: ClassVar[str]
    points: ClassVar[int]
    guidance: ClassVar[float]

    items: tuple[Item, ...]
    digest: str

    @abstractmethod
    def place(self, out: Path, item: Item) -> Path:
        """What appears at once when an item is finished."""

    @abstractmethod
    def write(self, images: Sequence[Image.Image], item: Item, part: Path) -> None:
        """Write an item's images at ``part``, which then moves to its place."""

    def done(self, out: Path, item: Item) -> bool:
        return self.place(out, item).exists()


class GenEval(Benchmark):
    """DIR/00000/{metadata.jsonl, grid.png, samples/0000.png ...}, one folder per line of the metadata file."""

    kind = "geneval"
    points = 100
    guidance = 7.5

    @classmethod
    def read(cls, prompts: Path) -> GenEval:
        """From evaluation_metadata.jsonl (or Show-o2's rewritten one): one object with a prompt per line."""
        lines = [line for line in _text(prompts).splitlines() if line.strip()]
        items = [_item(prompts, n, f"{n:05d}", _object(prompts, n, line)) for n, line in enumerate(lines)]
        return cls(*_checked(prompts, items))

    def place(self, out: Path, item: Item) -> Path:
        return out / item.name

    def write(self, images: Sequence[Image.Image], item: Item, part: Path) -> None:
        (part / "samples").mkdir(parents=True)
        for n, image in enumerate(images):
            image.save(part / "samples" / f"{n:04d}.png")
        grid(images).save(part / "grid.png")
        (part / "metadata.jsonl").write_text(json.dumps(item.about), encoding="utf-8")

    def done(self, out: Path, item: Item) -> bool:
        folder = self.place(out, item)
        if not folder.exists():
            return False
        wanted = ["metadata.jsonl", *(f"samples/{n:04d}.png" for n in range(SAMPLES))]
        if lacking := [name for name in wanted if not (folder / name).is_file()]:
            raise FlashUError(f"{folder} was written by something else and lacks {lacking[0]}: move it away")
        return True


class DPG(Benchmark):
    """DIR/NAME.png, a 2x2 grid per prompt, without margins: the scorer cuts it at multiples of the resolution."""

    kind = "dpg"
    points = 50
    guidance = 10.0

    @classmethod
    def read(cls, prompts: Path) -> DPG:
        """From Show-o2's dpg_bench_meta_data.json, or from DPG-Bench's folder with one text file per prompt."""
        if prompts.is_dir():
            files = sorted(prompts.glob("*.txt"))
            entries: list[Any] = [{"prompt": _text(f).strip(), "prompt_file_name": f.stem} for f in files]
        else:
            entries = _parsed(prompts, _text(prompts))
        if not isinstance(entries, list):
            raise FlashUError(f"{prompts}: holds no list of prompts")
        names = [entry.get("prompt_file_name") if isinstance(entry, dict) else None for entry in entries]
        for name in names:
            if not isinstance(name, str) or Path(name).name != name or "." in name:
                raise FlashUError(f"{prompts}: {name!r} cannot be the name of an image; is this a DPG-Bench file?")
        return cls(*_checked(prompts, [_item(prompts, n, str(names[n]), entry) for n, entry in enumerate(entries)]))

    def place(self, out: Path, item: Item) -> Path:
        return out / f"{item.name}.png"

    def write(self, images: Sequence[Image.Image], item: Item, part: Path) -> None:
        part.parent.mkdir(parents=True, exist_ok=True)
        grid(images).save(part, format="PNG")


def grid(images: Sequence[Image.Image]) -> Image.Image:
    """Four images as two rows of two."""
    width, height = images[0].size
    sheet = Image.new("RGB", (2 * width, height * -(-len(images) // 2)), "white")
    for n, image in enumerate(images):
        sheet.paste(image, (n % 2 * width, n // 2 * height))
    return sheet


def _item(file: Path, index: int, name: str, about: Any) -> Item:
    prompt = about.get("prompt") if isinstance(about, dict) else None
    if not isinstance(prompt, str) or not prompt.strip():
        raise FlashUError(f"{file}: entry {index + 1} has no prompt")
    return Item(index, name, prompt, about)


def _checked(file: Path, items: list[Item]) -> tuple[tuple[Item, ...], str]:
    if not items:
        raise FlashUError(f"{file}: there are no prompts in it")
    if len({item.name for item in items}) < len(items):
        raise FlashUError(f"{file}: two prompts have one name")
    listed = json.dumps([[item.name, item.prompt, item.about] for item in items], sort_keys=True)
    return tuple(items), hashlib.sha256(listed.encode()).hexdigest()[:16]


def _object(file: Path, index: int, line: str) -> Any:
    return _parsed(file, line, f" line {index + 1}")


def _parsed(file: Path, text: str, where: str = "") -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise FlashUError(f"{file}{where} is not JSON: {error}") from error


def _text(file: str | os.PathLike[str]) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FlashUError(f"{file} cannot be read: {error}") from error
