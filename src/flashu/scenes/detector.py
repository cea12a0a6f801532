"""The exact detector: reads an image back into objects by nearest template, cell by cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from .world import BACKGROUND, CELL, COLOURS, COLUMNS, GRID, PALETTE, ROWS, SHAPES, SIZE, Object, Scene, coverage

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    Picture = Image | np.ndarray | torch.Tensor

UNKNOWN = "unknown"
OFFSETS = np.linspace(-1.5, 1.5, 7)  # template displacements tried, pixels
EMPTY_ENERGY = 0.04  # of an average object's: below it a cell is empty
WORST_FIT = 0.35  # residual energy over template energy: above it the thing is no known object


@dataclass(frozen=True, slots=True)
class Detected:
    """One thing seen; `shape` and `colour` are UNKNOWN where nothing fits. `centre` is (x, y) in pixels."""

    shape: str
    colour: str
    row: int
    column: int
    centre: tuple[float, float]

    @property
    def kind(self) -> tuple[str, str]:
        return (self.colour, self.shape)

    @property
    def cell(self) -> str:
        return ROWS[self.row] + COLUMNS[self.column]


@cache
def _templates() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(differences to the background [K, CELL*CELL*3], their energies [K], labels [K, 4]: shape, colour, dx, dy)."""
    grid = [(s, x, y) for s in range(len(SHAPES)) for x in range(len(OFFSETS)) for y in range(len(OFFSETS))]
    s, x, y = np.array(grid).T
    alpha = coverage(s, OFFSETS[x], OFFSETS[y]).reshape(len(grid), 1, CELL * CELL, 1)
    difference = alpha * (PALETTE - BACKGROUND)[None, :, None]
    flat = difference.reshape(len(grid) * len(COLOURS), -1).astype(np.float32)
    labels = [(si, c, OFFSETS[xi], OFFSETS[yi]) for si, xi, yi in grid for c in range(len(COLOURS))]
    return flat, (flat**2).sum(1), np.array(labels)


def to_array(pictures: Sequence[Picture] | np.ndarray | torch.Tensor) -> np.ndarray:
    """Images -> float32 [n, 64, 64, 3] in 0..1. Takes PIL images, uint8 [64,64,3], or floats [3,64,64] in [-1,1]."""
    arrays = []
    for picture in pictures:
        array = np.asarray(picture.detach().cpu().float() if hasattr(picture, "detach") else picture)
        if array.shape == (3, SIZE, SIZE):
            array = (array.transpose(1, 2, 0).clip(-1, 1) + 1) / 2
        elif array.shape == (SIZE, SIZE, 3):
            array = array / 255
        else:
            raise ValueError(f"expected a 64x64 RGB image, not one of shape {array.shape}")
        arrays.append(array.astype(np.float32))
    return np.stack(arrays)


def detect(pictures: Sequence[Picture] | np.ndarray | torch.Tensor) -> list[list[Detected]]:
    """What each image shows, in reading order. A [n,64,64,3] uint8 array counts as n images."""
    images = to_array(pictures)
    n = len(images)
    cells = (images - BACKGROUND).reshape(n, GRID, CELL, GRID, CELL, 3).transpose(0, 1, 3, 2, 4, 5)
    cells = cells.reshape(n * GRID * GRID, -1)
    energy = (cells**2).sum(1)
    templates, template_energy, labels = _templates()
    occupied = np.flatnonzero(energy > EMPTY_ENERGY * template_energy.mean())
    found: list[list[Detected]] = [[] for _ in range(n)]
    if not len(occupied):
        return found
    residual = energy[occupied, None] + template_energy - 2 * cells[occupied] @ templates.T
    best = residual.argmin(1)
    fits = residual[np.arange(len(best)), best] / template_energy[best] < WORST_FIT
    for index, k, known in zip(occupied, best, fits, strict=True):
        image, cell = divmod(int(index), GRID * GRID)
        row, column = divmod(cell, GRID)
        shape, colour, dx, dy = labels[k]
        centre = (column * CELL + CELL / 2 + float(dx), row * CELL + CELL / 2 + float(dy))
        names = (SHAPES[int(shape)], COLOURS[int(colour)]) if known else (UNKNOWN, UNKNOWN)
        found[image].append(Detected(*names, row, column, centre))
    return found


def agrees(found: Sequence[Detected | Object], scene: Scene) -> bool:
    """Whether exactly the objects of the scene were seen, each in its cell."""
    seen = sorted((o.row, o.column, *o.kind) for o in found)
    return seen == sorted((o.row, o.column, *o.kind) for o in scene.objects)
