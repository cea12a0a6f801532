"""Pictures: files cut and damaged in every format, odd modes and sizes, tensors and arrays."""

from __future__ import annotations

import io
import itertools
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from flashu.models.pictures import pixels
from tests.robustness.cases import Case

FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "ICO", "TGA", "PCX")
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16")


def cases(folder: Path, seed: int) -> list[Case]:
    return list(itertools.chain(_files(folder, random.Random(seed)), _images(), _tensors()))


def seen(image: Any) -> None:
    """What a model is shown; it must be finite and in range."""
    shown = pixels(image, 64, 64)
    assert shown.shape == (1, 3, 64, 64)
    assert bool(shown.isfinite().all())
    assert float(shown.abs().max()) <= 1


def _files(folder: Path, dice: random.Random) -> Iterator[Case]:
    noise = Image.effect_noise((48, 40), 60).convert("RGB")
    for kind in FORMATS:
        buffer = io.BytesIO()
        noise.save(buffer, kind)
        whole = buffer.getvalue()
        versions = {"whole": whole} | {f"cut at {n}": whole[:n] for n in {0, 1, 8, 30, *_points(dice, whole, 6)}}
        for _ in range(8):
            at = dice.randrange(min(len(whole), 200))
            versions[f"byte {at} damaged"] = whole[:at] + bytes([dice.randrange(256)]) + whole[at + 1 :]
        versions["junk behind it"] = whole + b"\0" * 99
        for what, data in versions.items():
            for how in ("file", "opened"):
                yield Case(
                    "pictures",
                    f"{kind} {what}, {how}",
                    lambda data=data, how=how, kind=kind: _seen_file(folder, data, how, kind),
                    "accept" if what == "whole" else "either",
                )


def _points(dice: random.Random, whole: bytes, count: int) -> list[int]:
    return [dice.randrange(len(whole)) for _ in range(count)]


def _seen_file(folder: Path, data: bytes, how: str, kind: str) -> None:
    file = folder / f"picture.{kind.lower()}"
    file.write_bytes(data)
    if how == "file":
        seen(file)
        return
    try:
        image = Image.open(file)
    except Exception:
        return  # PIL's own business
    seen(image)


def _images() -> Iterator[Case]:
    for mode in MODES:
        for size in ((1, 1), (64, 64), (1, 64), (1, 65), (3000, 1), (0, 0), (0, 5)):
            yield Case("pictures", f"mode {mode} {size}", lambda mode=mode, size=size: seen(Image.new(mode, size)))

    def closed() -> None:
        buffer = io.BytesIO()
        Image.new("RGB", (9, 9)).save(buffer, "PNG")
        image = Image.open(buffer)
        image.close()
        seen(image)

    yield Case("pictures", "closed", closed, "refuse")
    for what in (
        None,
        5,
        2.5,
        b"x",
        "",
        "none.png",
        "/",
        "/dev/zero",
        "\0",
        "x" * 5000,
        "http://a/b.png",
        [],
        {},
        object(),
    ):
        yield Case("pictures", f"{what!r:.30}", lambda what=what: seen(what), "refuse")


def _tensors() -> Iterator[Case]:
    types = (
        torch.uint8,
        torch.int8,
        torch.int64,
        torch.bool,
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
    )
    shapes = ((3, 8, 8), (1, 3, 8, 8), (2, 3, 8, 8), (8, 8), (8, 8, 3), (3, 0, 8), (3, 1, 500), (), (3,), (4, 8, 8))
    for dtype, shape in itertools.product(types, shapes):
        yield Case("pictures", f"tensor {dtype} {shape}", lambda d=dtype, s=shape: seen(torch.zeros(s).to(d)))
    for value in (math.nan, math.inf, -math.inf, 1.001, -2.0, 255.0):
        yield Case("pictures", f"tensor of {value}", lambda v=value: seen(torch.full((3, 8, 8), v)), "refuse")
    yield Case("pictures", "meta tensor", lambda: seen(torch.zeros(3, 8, 8, device="meta")), "refuse")
    yield Case("pictures", "sparse tensor", lambda: seen(torch.zeros(3, 8, 8).to_sparse()), "refuse")
    for dtype, size in itertools.product(
        ("uint8", "int32", "float32", "bool", "object", "U1"), ((8, 8, 3), (8, 8), (3, 8, 8))
    ):
        yield Case("pictures", f"array {dtype} {size}", lambda d=dtype, s=size: seen(np.zeros(s, dtype=d)))
    for view in (np.s_[::-1], np.s_[:, ::2], np.s_[:0]):
        yield Case("pictures", f"array view {view}", lambda view=view: seen(np.zeros((8, 8, 3), np.uint8)[view]))
