"""GEdit-Bench and ImgEdit: their instructions and pictures, and the files their scorers read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from flashu.errors import FlashUError
from flashu.evaluation.official import Benchmark, Item, checked, parsed, text_of

TURNS = "turn"
"""What the keys of a multi-turn entry begin with: turn1, turn2 ..."""

LANGUAGES = ("en", "cn")


class ImgEdit(Benchmark):
    """DIR/KEY.png, one edited picture per entry. Of several turns: DIR/KEY/turn1.png, turn2.png ..., each made of the
    one before."""

    kind = "imgedit"
    edits = True

    @classmethod
    def read(cls, instructions: Path, images: Path) -> ImgEdit:
        """From a file of ImgEdit's (single turn, UGE or one of its multi-turn files) and the folder of its pictures:
        {KEY: {"id": picture in the folder, "prompt": ... | "turn1": ..., "turn2": ...}}."""
        entries = parsed(text_of(instructions), str(instructions))
        if not isinstance(entries, dict) or not entries:
            raise FlashUError(f"{instructions}: holds no entries by key; is this an ImgEdit file?")
        if strange := [key for key in entries if Path(key).name != key]:
            raise FlashUError(f"{instructions}: {strange[0]!r} cannot be the name of an image")
        turned = [_turns(entry) if isinstance(entry, dict) else [] for entry in entries.values()]
        several = any(turned)
        items, digest = checked(instructions, entries, f"{TURNS}1" if several else "prompt")
        return cls(tuple(_with_source(item, images, later) for item, later in zip(items, turned, strict=True)), digest)

    @property
    def samples(self) -> int:
        return 1 + max(len(item.turns) for item in self.items)

    def path(self, out: Path, item: Item) -> Path:
        return out / (item.name if self.samples > 1 else f"{item.name}.png")

    def write(self, images: Sequence[Image.Image], item: Item, part: Path) -> None:
        if self.samples == 1:
            images[0].save(part, format="PNG")
            return
        part.mkdir(parents=True)
        for n, image in enumerate(images, 1):
            image.save(part / f"{TURNS}{n}.png")


class GEdit(Benchmark):
    """DIR/fullset/TASK/LANGUAGE/KEY.png, and the picture it was made of beside it as KEY_SRCIMG.png."""

    kind = "gedit"
    edits = True
    samples = 1

    @classmethod
    def read(cls, data: str, language: str | None = None) -> GEdit:
        """From a hub id or a folder of the dataset (with `datasets`), or from a .jsonl file of its rows in which
        ``input_image`` is a path beside the file. ``language``: "en" or "cn" alone, None = both."""
        if language not in (None, *LANGUAGES):
            raise FlashUError(f"GEdit-Bench has no language {language!r}: give {' or '.join(LANGUAGES)}")
        file = Path(data)
        rows = list(_rows_of(file) if file.suffix == ".jsonl" else _rows_of_dataset(data))
        named: dict[str, Any] = {}
        sources = {}
        for row, source in rows:
            parts: list[Any] = [row.get(name) for name in ("task_type", "instruction_language", "key")]
            if not all(isinstance(part, str) and part and Path(part).name == part for part in parts):
                raise FlashUError(f"{data}: {parts} cannot be the place of an image; is this GEdit-Bench?")
            if language in (None, parts[1]):
                named["/".join(parts)] = row
                sources["/".join(parts)] = source
        items, digest = checked(data, named, "instruction")
        return cls(tuple(replace(item, source=sources[item.name]) for item in items), digest)

    def path(self, out: Path, item: Item) -> Path:
        return out / "fullset" / f"{item.name}.png"

    def write(self, images: Sequence[Image.Image], item: Item, part: Path) -> None:
        assert item.source is not None
        part.mkdir(parents=True)
        item.source().convert("RGB").save(part / "source.png")
        images[0].save(part / "edited.png")

    def publish(self, out: Path, item: Item, part: Path) -> None:
        place = self.path(out, item)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(part / "source.png", place.with_name(f"{place.stem}_SRCIMG.png"))
        os.replace(part / "edited.png", place)
        part.rmdir()


def _with_source(item: Item, images: Path, turns: Sequence[str]) -> Item:
    name = item.metadata.get("id")
    if not isinstance(name, str) or not name:
        raise FlashUError(f"entry {item.name} names no picture (id)")
    return replace(item, source=partial(_opened, images / name), turns=tuple(turns))


def _turns(entry: Mapping[str, Any]) -> list[str]:
    """The instructions after the first of an entry of several turns."""
    later: list[str] = []
    while isinstance(text := entry.get(f"{TURNS}{len(later) + 2}"), str) and text.strip():
        later.append(text)
    return later


def _opened(file: Path) -> Image.Image:
    try:
        with Image.open(file) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError) as error:
        raise FlashUError(f"{file} cannot be opened ({error}): give the folder of the benchmark's pictures") from error


def _rows_of(file: Path) -> Iterator[tuple[dict[str, Any], Any]]:
    for number, line in enumerate(text_of(file).splitlines(), 1):
        if line.strip():
            row = parsed(line, f"{file} line {number}")
            if not isinstance(row, dict) or not isinstance(row.get("input_image"), str):
                raise FlashUError(f"{file} line {number} names no input_image")
            yield row, partial(_opened, file.parent / row["input_image"])


def _rows_of_dataset(data: str) -> Iterator[tuple[dict[str, Any], Any]]:
    """Rows without their pictures, which are decoded one by one when they are needed."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise FlashUError(
            f"reading {data} needs datasets: pip install datasets; or give a .jsonl file of its rows"
        ) from error
    try:
        table = load_dataset(data, split="train")
    except (OSError, ValueError) as error:
        raise FlashUError(f"{data} cannot be read as a dataset: {next(iter(str(error).splitlines()), '')}") from error
    plain = table.select_columns([name for name in table.column_names if not name.startswith("input_image")])
    for number, row in enumerate(plain):
        yield dict(row), partial(_cell, table, number)


def _cell(table: Any, number: int) -> Image.Image:
    return table[number]["input_image"].convert("RGB")
