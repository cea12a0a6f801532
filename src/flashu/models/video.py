"""A video as the models see it: frames in order, each a picture of its own."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from flashu.errors import ImageError
from flashu.models.pictures import Picture

FRAMES = 32
"""Frames of a video that the released script shows."""


@dataclass(frozen=True, eq=False)
class Video:
    """Pictures in the order they happen, all of which are shown: a sequence, a tensor [T, 3, H, W] or an array
    [T, H, W, 3] (see `Picture` for what one may be). `ImageError` if there is none."""

    frames: Sequence[Picture] | Tensor | np.ndarray

    def __post_init__(self) -> None:
        if isinstance(self.frames, (str, os.PathLike)):
            raise ImageError(f"Video takes frames; Video.open({os.fspath(self.frames)!r}) reads them")
        frames = tuple(self.frames)
        if not frames:
            raise ImageError("a video without a frame: give at least one")
        object.__setattr__(self, "frames", frames)

    def __len__(self) -> int:
        return len(self.frames)

    @classmethod
    def open(cls, path: str | os.PathLike[str], frames: int = FRAMES) -> Video:
        """``frames`` pictures, evenly spaced from the first to the last, of a folder of images (in the order of their
        names, 2 before 10) or an animated image (GIF, WebP, PNG). As in the original, a shorter one repeats some.

        Raises `ImageError` for anything else; film formats are taken apart by other programs.
        """
        if not isinstance(frames, int) or frames < 1:
            raise ImageError(f"a video has at least one frame, not {frames!r}")
        path = Path(path)
        if path.is_dir():
            files = pictures(path)
            return cls([files[n] for n in spaced(len(files), frames)])
        try:
            with Image.open(path) as film:
                return cls(_frames(film, spaced(getattr(film, "n_frames", 1), frames)))
        except FileNotFoundError as e:
            raise ImageError(f"{path}: there is no such file") from e
        except UnidentifiedImageError as e:
            raise ImageError(
                f"{path}: neither a folder of images nor an animated image. Take a film apart first, "
                f"`ffmpeg -i {path.name} frames/%05d.png`, and give the folder"
            ) from e
        except (OSError, SyntaxError, EOFError) as e:
            raise ImageError(f"{path}: cannot be read, it may be damaged ({e})") from e


def spaced(total: int, count: int) -> list[int]:
    """``count`` whole numbers from 0 to total - 1, evenly spaced and rounded down, as the original takes frames."""
    return np.linspace(0, total - 1, count, dtype=int).tolist()


def pictures(folder: Path) -> list[Path]:
    """The images of a folder by name, numbers in it by value; `ImageError` if there is none."""
    known = Image.registered_extensions()
    found = [path for path in folder.iterdir() if path.suffix.lower() in known and path.is_file()]
    if not found:
        raise ImageError(f"{folder}: there is no image in this folder")
    return sorted(found, key=lambda path: [(int(n or 0), word) for n, word in _PIECES.findall(path.name)])


def is_video(path: Path) -> bool:
    """Whether a path is a folder or an image with several frames."""
    if path.is_dir():
        return True
    if not path.is_file():  # a pipe is not waited for
        return False
    try:
        with Image.open(path) as film:
            return getattr(film, "n_frames", 1) > 1
    except Exception:  # of a damaged file, pillow's readers raise errors of every kind
        return False


_PIECES = re.compile(r"(\d+)|(\D+)")


def _frames(film: Image.Image, wanted: Sequence[int]) -> list[Image.Image]:
    """In ascending order, which is the only one that is cheap; a frame wanted twice is one picture."""
    taken: dict[int, Image.Image] = {}
    for n in wanted:
        if n not in taken:
            film.seek(n)
            taken[n] = film.convert("RGB")
    return [taken[n] for n in wanted]
