"""GenEval, GenEval 2 and DPG-Bench: their prompt files, and the files their scorers read."""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from flashu.errors import FlashUError
from flashu.evaluation.files import write_json
from flashu.plan.files import given_text


@dataclass(frozen=True)
class Item:
    """One prompt. ``index`` counts over the whole benchmark, ``name`` is its folder or file. ``source``: opens the
    picture to edit; ``turns``: instructions after the first, each for the image that the one before gave."""

    index: int
    name: str
    prompt: str
    metadata: dict[str, Any]
    source: Callable[[], Any] | None = None
    turns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Benchmark(ABC):
    """``kind``: its name in `Family.benchmarks`. ``edits``: whether its items are pictures to edit. ``digest``: 16 hex
    digits of the prompts and names."""

    kind: ClassVar[str]
    edits: ClassVar[bool] = False

    items: tuple[Item, ...]
    digest: str

    @property
    def samples(self) -> int:
        """Most images of an item."""
        return 4

    @abstractmethod
    def path(self, out: Path, item: Item) -> Path:
        """The file or folder that appears at once when an item is finished."""

    @abstractmethod
    def write(self, images: Sequence[Image.Image], item: Item, part: Path) -> None:
        """Write an item's images at ``part``, for `publish`."""

    def publish(self, out: Path, item: Item, part: Path) -> None:
        """Move what `write` wrote to its place, `path` last."""
        os.replace(part, self.path(out, item))

    def index(self, out: Path, done: Sequence[Item]) -> None:  # noqa: B027 (most scorers need nothing more)
        """Write what the scorer reads besides, about the items finished so far."""

    def done(self, out: Path, item: Item) -> bool:
        return self.path(out, item).exists()


class GenEval(Benchmark):
    """DIR/00000/{metadata.jsonl, grid.png, samples/0000.png ...}, one folder per line of the metadata file."""

    kind = "geneval"

    @classmethod
    def read(cls, prompts: Path) -> GenEval:
        """From evaluation_metadata.jsonl (or a rewritten one): one object with a prompt per line."""
        lines = [line for line in text_of(prompts).splitlines() if line.strip()]
        entries = [parsed(line, f"{prompts} line {n}") for n, line in enumerate(lines, 1)]
        return cls(*checked(prompts, {f"{n:05d}": entry for n, entry in enumerate(entries)}))

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
        wanted = ["metadata.jsonl", *(f"samples/{n:04d}.png" for n in range(self.samples))]
        if folder.exists() and (lacking := [name for name in wanted if not (folder / name).is_file()]):
            raise FlashUError(f"{folder} was written by something else and lacks {lacking[0]}: move it away")
        return folder.exists()


class GenEval2(Benchmark):
    """DIR/images/00000.png, one image per prompt, and DIR/image_paths.json, which says for each prompt where it is."""

    kind = "geneval2"
    samples = 1

    @classmethod
    def read(cls, prompts: Path) -> GenEval2:
        """From geneval2_data.jsonl: one object with a prompt per line, no prompt twice."""
        lines = [line for line in text_of(prompts).splitlines() if line.strip()]
        entries = [parsed(line, f"{prompts} line {n}") for n, line in enumerate(lines, 1)]
        items, digest = checked(prompts, {f"{n:05d}": entry for n, entry in enumerate(entries)})
        if len({item.prompt for item in items}) < len(items):
            raise FlashUError(f"{prompts}: a prompt stands there twice, but GenEval 2's scorer finds images by prompt")
        return cls(items, digest)

    def path(self, out: Path, item: Item) -> Path:
        return out / "images" / f"{item.name}.png"

    def write(self, images: Sequence[Image.Image], item: Item, part: Path) -> None:
        images[0].save(part, format="PNG")

    def index(self, out: Path, done: Sequence[Item]) -> None:
        write_json(out / "image_paths.json", {item.prompt: str(self.path(out, item).resolve()) for item in done})


class DPG(Benchmark):
    """DIR/NAME.png, a 2x2 grid per prompt, without margins: the scorer cuts it at multiples of the resolution."""

    kind = "dpg"

    @classmethod
    def read(cls, prompts: Path) -> DPG:
        """From dpg_bench_meta_data.json, or from DPG-Bench's folder with one text file per prompt."""
        if prompts.is_dir():
            entries: Any = [
                {"prompt": text_of(f).strip(), "prompt_file_name": f.stem} for f in sorted(prompts.glob("*.txt"))
            ]
        else:
            entries = parsed(text_of(prompts), str(prompts))
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
        return cls(*checked(prompts, named))

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


def checked(file: object, entries: Mapping[str, Any], key: str = "prompt") -> tuple[tuple[Item, ...], str]:
    """The items of entries by name, and their digest. ``key``: of an entry's prompt."""
    items = []
    for index, (name, entry) in enumerate(entries.items()):
        prompt = entry.get(key) if isinstance(entry, dict) else None
        if not isinstance(prompt, str) or not prompt.strip():
            raise FlashUError(f"{file}: entry {index + 1} has no {key}")
        items.append(Item(index, name, prompt, entry))
    if not items:
        raise FlashUError(f"{file}: there are no prompts in it")
    listed = json.dumps([[item.name, item.prompt, item.metadata] for item in items], sort_keys=True)
    return tuple(items), hashlib.sha256(listed.encode()).hexdigest()[:16]


def parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise FlashUError(f"{where} is not JSON: {error}") from error


def text_of(file: Path) -> str:
    return given_text(file)
