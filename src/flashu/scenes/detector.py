"""The exact detector: reads an image back into objects, each by the nearest template.

Where every object has a cell of its own, it compares each cell; else the surroundings of each connected component.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from .world import BACKGROUND, CELL, COLUMNS, ROWS, SCENES, Object, Point, Scene, World, coverage, named

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    Picture = Image | np.ndarray | torch.Tensor

UNKNOWN = "unknown"
OFFSETS = np.linspace(-1.5, 1.5, 7)  # template displacements tried, pixels
EMPTY_ENERGY = 0.04  # of an average object's: below it a place is empty
WORST_FIT = 0.35  # residual energy over template energy: above it the thing is no known object
FOREGROUND = 0.3  # colour distance from the background (0 to 1.7) at which a pixel belongs to a component
NEAR = CELL / 4  # pixels between where a thing was seen and where it is


@dataclass(frozen=True, slots=True)
class Detected:
    """One thing seen; `shape` and `colour` are UNKNOWN where nothing fits. `centre` is (x, y) in pixels."""

    shape: str
    colour: str
    row: int
    column: int
    centre: Point

    @property
    def kind(self) -> tuple[str, str]:
        return (self.colour, self.shape)

    @property
    def cell(self) -> str:
        return ROWS[self.row] + COLUMNS[self.column]


@cache
def _templates(world: World) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(differences to the background [K, 16*16*3], their energies [K], labels [K, 4]: shape, colour, dx, dy)."""
    shapes, colours = len(world.shapes), len(world.colours)
    grid = [(s, x, y) for s in range(shapes) for x in range(len(OFFSETS)) for y in range(len(OFFSETS))]
    s, x, y = np.array(grid).T
    alpha = coverage(world, s, OFFSETS[x], OFFSETS[y]).reshape(len(grid), 1, CELL**2, 1)
    difference = alpha * (world.palette - BACKGROUND)[None, :, None]
    flat = difference.reshape(len(grid) * colours, -1).astype(np.float32)
    labels = [(si, c, OFFSETS[xi], OFFSETS[yi]) for si, xi, yi in grid for c in range(colours)]
    return flat, (flat**2).sum(1), np.array(labels)


def to_array(pictures: Sequence[Picture] | np.ndarray | torch.Tensor, world: World = SCENES) -> np.ndarray:
    """Images -> float32 [n, S, S, 3] in 0..1. Takes PIL images, uint8 [S,S,3], or floats [3,S,S] in [-1,1]."""
    size = world.size
    arrays = []
    for picture in pictures:
        array = np.asarray(picture.detach().cpu().float() if hasattr(picture, "detach") else picture)
        if array.shape == (3, size, size):
            array = (array.transpose(1, 2, 0).clip(-1, 1) + 1) / 2
        elif array.shape == (size, size, 3):
            array = array / 255
        else:
            raise ValueError(f"expected a {size}x{size} RGB image, not one of shape {array.shape}")
        arrays.append(array.astype(np.float32))
    return np.stack(arrays)


def detect(pictures: Sequence[Picture] | np.ndarray | torch.Tensor, world: World = SCENES) -> list[list[Detected]]:
    """What each image shows, in reading order. A [n,S,S,3] uint8 array counts as n images."""
    difference = to_array(pictures, world) - BACKGROUND
    found: list[list[Detected]] = [[] for _ in difference]
    index, corners, patches = (_cells if world.pitch == CELL else _components)(difference, world)
    energy = (patches**2).sum(1)
    templates, template_energy, labels = _templates(world)
    occupied = np.flatnonzero(energy > EMPTY_ENERGY * template_energy.mean())
    if not len(occupied):
        return found
    residual = energy[occupied, None] + template_energy - 2 * patches[occupied] @ templates.T
    best = residual.argmin(1)
    fits = residual[np.arange(len(best)), best] / template_energy[best] < WORST_FIT
    half = CELL / 2
    for image, (left, top), k, known in zip(index[occupied], corners[occupied], best, fits, strict=True):
        shape, colour, dx, dy = labels[k]
        centre = (int(left) + half + float(dx), int(top) + half + float(dy))
        names = (world.shapes[int(shape)], world.colours[int(colour)]) if known else (UNKNOWN, UNKNOWN)
        found[image].append(Detected(*names, *named(centre), centre))
    return [sorted(things, key=lambda o: (o.row, o.column)) for things in found]


Patches = tuple[np.ndarray, np.ndarray, np.ndarray]  # of each: image [m], top left corner [m, 2], pixels [m, 16*16*3]


def _cells(difference: np.ndarray, world: World) -> Patches:
    """Every cell of every image."""
    n, side = len(difference), world.side
    patches = difference.reshape(n, side, CELL, side, CELL, 3).transpose(0, 1, 3, 2, 4, 5)
    rows, columns = np.divmod(np.tile(np.arange(side * side), n), side)
    corners = np.stack((columns, rows), 1) * CELL
    return np.repeat(np.arange(n), side * side), corners, patches.reshape(n * side * side, -1)


def _components(difference: np.ndarray, world: World) -> Patches:
    """The surroundings of every connected component, without what other components show there."""
    index, corners, patches = [], [], []
    for i, image in enumerate(difference):
        labels = _label_components(np.sqrt((image**2).sum(-1)) > FOREGROUND)
        for component in range(1, labels.max() + 1):
            ys, xs = np.nonzero(labels == component)
            middle = np.array([xs.min() + xs.max() + 1, ys.min() + ys.max() + 1]) / 2
            left, top = np.clip(np.rint(middle - CELL / 2).astype(int), 0, world.size - CELL)
            span = np.s_[top : top + CELL, left : left + CELL]
            others = (labels[span] != component) & (labels[span] != 0)
            patches.append(np.where(others[..., None], 0, image[span]).ravel())
            index.append(i)
            corners.append((left, top))
    shape = (len(patches), CELL * CELL * 3)
    return np.array(index, int), np.array(corners, int).reshape(-1, 2), np.array(patches, np.float32).reshape(shape)


def _label_components(mask: np.ndarray) -> np.ndarray:
    """Connected (also by corners) pixels of mask [H, W] -> their component's number, from 1; 0 outside."""
    labels = np.zeros(mask.shape, int)
    left = {(int(y), int(x)) for y, x in zip(*np.nonzero(mask), strict=True)}
    number = 0
    while left:
        number += 1
        front = [left.pop()]
        while front:
            y, x = front.pop()
            labels[y, x] = number
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            front += near
    return labels


def agrees(found: Sequence[Detected | Object], scene: Scene) -> bool:
    """Whether exactly the objects of the scene were seen, each near its place."""
    left = list(found)
    for real in scene.objects:
        seen = [o for o in left if o.kind == real.kind and np.hypot(*np.subtract(o.centre, real.centre)) < NEAR]
        if not seen:
            return False
        left.remove(seen[0])
    return not left
