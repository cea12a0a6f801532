"""What a command shows and writes: results on stdout, progress on stderr, files that are never seen half-written."""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from flashu.errors import FlashUError

if TYPE_CHECKING:
    from PIL import Image

FORMATS = (".png", ".jpg", ".jpeg", ".webp")


def out() -> Console:
    return Console(soft_wrap=False)


def progress() -> Progress:
    """Bars on stderr, gone when done; silent unless that is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


@contextmanager
def without_warnings() -> Iterator[None]:
    """For studies that try on purpose what a warning would be about."""
    log = logging.getLogger("flashu")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def bar(bars: Progress, name: str, total: int | None = None) -> Callable[[int, int], None]:
    """A bar that shows (done, total) as it is called."""
    task = bars.add_task(name, total=total)

    def show(done: int, total: int) -> None:
        bars.update(task, completed=done, total=total)

    return show


def to_json(value: dict[str, Any], indent: int = 2) -> str:
    return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)


def emit(value: dict[str, Any]) -> None:
    """The one JSON object of `--json`."""
    print(to_json(value))


def command_line() -> str:
    """This command as one would type it again."""
    return shlex.join(["flashu", *sys.argv[1:]])


def image_paths(out: Path, count: int) -> list[Path]:
    """One path per image: ``out`` itself, out-0.png, out-1.png, ... for several, or numbered files in a folder."""
    if out.is_dir() or not out.suffix:
        return [out / f"{n:0{len(str(count - 1))}d}.png" for n in range(count)]
    if out.suffix.lower() not in FORMATS:
        raise FlashUError(f"{out}: images are written as {', '.join(FORMATS)}, or into a folder")
    if count == 1:
        return [out]
    return [out.with_name(f"{out.stem}-{n}{out.suffix}") for n in range(count)]


def write_image(image: Image.Image, path: Path, about: dict[str, Any]) -> None:
    """Write an image; a PNG carries ``about`` (what made it) in a text chunk named flashu."""
    from PIL import PngImagePlugin

    settings: dict[str, Any] = {}
    if path.suffix.lower() == ".png":
        settings["pnginfo"] = PngImagePlugin.PngInfo()
        settings["pnginfo"].add_itxt("flashu", json.dumps(about, ensure_ascii=False))
    write(path, lambda part: image.save(part, **settings))


def write_text(path: Path, text: str) -> None:
    write(path, lambda part: part.write_text(text, encoding="utf-8"))


def write(path: Path, save: Callable[[Path], object]) -> None:
    """``save`` writes a file beside ``path``, which then takes its place at once."""
    part = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save(part)
        os.replace(part, path)
    except OSError as error:
        raise FlashUError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        if part.exists():
            part.unlink()
