"""Where images go, and writing them so that no half-written file is ever seen."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from flashu.errors import FlashUError

FORMATS = (".png", ".jpg", ".jpeg", ".webp")


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
    settings: dict[str, Any] = {}
    if path.suffix.lower() == ".png":
        settings["pnginfo"] = PngImagePlugin.PngInfo()
        settings["pnginfo"].add_itxt("flashu", json.dumps(about, ensure_ascii=False))
    write(path, lambda part: image.save(part, **settings))


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
