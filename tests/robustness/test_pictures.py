"""Pictures that cannot be used: one `ImageError`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from flashu.errors import ImageError
from flashu.models.pictures import opened


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    file = tmp_path / "picture.png"
    Image.effect_noise((64, 64), 50).save(file)
    return file


def test_a_closed_one(picture: Path) -> None:
    image = Image.open(picture)
    image.close()
    with pytest.raises(ImageError, match="closed"):
        opened(image)


def test_a_truncated_one_that_pillow_has_not_read_yet(picture: Path, tmp_path: Path) -> None:
    part = tmp_path / "part.png"
    part.write_bytes(picture.read_bytes()[:1500])
    for given in (part, Image.open(part)):
        with pytest.raises(ImageError, match="damaged"):
            opened(given)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("a.svg", "export it as PNG"),
        ("a.HEIC", "convert it"),
        ("a.png", "cannot identify"),
        ("a.pdf", "export the page"),
    ],
)
def test_files_of_other_kinds(name: str, remedy: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"not a picture at all")
    with pytest.raises(ImageError, match=remedy):
        opened(tmp_path / name)


@pytest.mark.parametrize("address", ["http://example.org/a.png", "https://a.org/b", "data:image/png;base64,AA"])
def test_addresses(address: str) -> None:
    with pytest.raises(ImageError, match="save the picture to a file"):
        opened(address)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match="regular file"):
        opened(tmp_path / "pipe.png")


def test_a_camera_held_sideways(tmp_path: Path) -> None:
    image = Image.new("RGB", (64, 32), "red")
    image.paste("blue", (0, 0, 32, 32))
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    upright = opened(tmp_path / "turned.png")
    assert upright.size == (32, 64)
    assert upright.getpixel((16, 8)) == (0, 0, 255)
