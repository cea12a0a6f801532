"""The world: one to four coloured shapes on a plain 4x4 board of 64x64 pixels, one object to a cell."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = ("red", "green", "blue", "yellow", "purple")
ROWS = ("1", "2", "3", "4")  # top to bottom
COLUMNS = ("a", "b", "c", "d")  # left to right
RELATIONS = ("left of", "right of", "above", "below")

SIZE = 64
GRID = 4
CELL = SIZE // GRID
JITTER = 0.8
MAX_OBJECTS = 4
RADIUS = 6.0

BACKGROUND = np.array([232, 232, 228], np.float32) / 255
PALETTE = (
    np.array([[214, 40, 40], [38, 150, 60], [36, 84, 214], [244, 186, 24], [138, 56, 190]], np.float32) / 255
)  # in the order of COLOURS

Kind = tuple[str, str]  # (colour, shape)


@dataclass(frozen=True, slots=True, order=True)
class Object:
    """One shape. Ordered by cell, in reading order; `dx`, `dy` are the jitter in pixels."""

    row: int
    column: int
    shape: str
    colour: str
    dx: float = 0.0
    dy: float = 0.0

    @property
    def kind(self) -> Kind:
        return (self.colour, self.shape)

    @property
    def cell(self) -> str:
        """Name of the cell, like a seat: row digit, then column letter ("2c")."""
        return ROWS[self.row] + COLUMNS[self.column]

    @property
    def centre(self) -> tuple[float, float]:
        """(x, y) in pixels."""
        half = CELL / 2
        return (self.column * CELL + half + self.dx, self.row * CELL + half + self.dy)


@dataclass(frozen=True, slots=True)
class Scene:
    """Objects in reading order."""

    objects: tuple[Object, ...]

    def matching(self, shape: str | None = None, colour: str | None = None) -> tuple[Object, ...]:
        """The objects of this shape and colour, in reading order; None matches anything."""
        return tuple(o for o in self.objects if shape in (None, o.shape) and colour in (None, o.colour))


def holds(relation: str, a: tuple[float, float], b: tuple[float, float], margin: float) -> bool:
    """Whether point a stands in the relation to point b, by more than the margin on that axis."""
    dx, dy = b[0] - a[0], b[1] - a[1]
    return {"left of": dx, "right of": -dx, "above": dy, "below": -dy}[relation] > margin


def place(kinds: Sequence[Kind], rng: np.random.Generator, aligned: bool = False) -> Scene:
    """Puts the kinds on distinct random cells; `aligned` keeps them all in one row or one column."""
    if aligned:
        line, spots = int(rng.integers(GRID)), rng.permutation(GRID)[: len(kinds)]
        across = rng.random() < 0.5
        cells = [(line, int(s)) if across else (int(s), line) for s in spots]
    else:
        cells = [divmod(int(c), GRID) for c in rng.permutation(GRID * GRID)[: len(kinds)]]
    jitter = rng.uniform(-JITTER, JITTER, (len(kinds), 2))
    return Scene(
        tuple(
            sorted(
                Object(row, column, shape, colour, float(dx), float(dy))
                for (colour, shape), (row, column), (dx, dy) in zip(kinds, cells, jitter, strict=True)
            )
        )
    )


def coverage(shape: np.ndarray, dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """Antialiased masks of shapes [n] (indices into SHAPES) displaced by dx, dy [n] px -> [n, CELL, CELL]."""
    axis = np.arange(CELL, dtype=np.float32) - (CELL - 1) / 2
    x = axis[None, None, :] - dx[:, None, None].astype(np.float32)
    y = axis[None, :, None] - dy[:, None, None].astype(np.float32)
    ax, ay = np.abs(x), np.abs(y)
    side, arm, tilt = 0.86 * RADIUS, 0.34 * RADIUS, 1 / np.sqrt(5, dtype=np.float32)
    distance = np.stack(  # signed distances in pixels, negative inside
        [
            np.sqrt(x * x + y * y) - RADIUS,
            np.maximum(ax, ay) - side,
            np.maximum(y - side, (2 * ax - y - RADIUS) * tilt),
            np.minimum(np.maximum(ax - arm, ay - RADIUS), np.maximum(ay - arm, ax - RADIUS)),
        ]
    )
    return np.clip(0.5 - distance[shape, np.arange(len(shape))], 0, 1)


def render(scenes: Iterable[Scene]) -> np.ndarray:
    """Scenes -> uint8 images [n, 64, 64, 3]."""
    scenes = list(scenes)
    board = np.broadcast_to(BACKGROUND, (len(scenes), GRID, GRID, CELL, CELL, 3)).copy()
    items = [(i, o) for i, scene in enumerate(scenes) for o in scene.objects]
    if items:
        index, rows, columns = (np.array(v) for v in zip(*((i, o.row, o.column) for i, o in items), strict=True))
        shapes = np.array([SHAPES.index(o.shape) for _, o in items])
        colours = PALETTE[[COLOURS.index(o.colour) for _, o in items]]
        jitter = np.array([(o.dx, o.dy) for _, o in items])
        alpha = coverage(shapes, jitter[:, 0], jitter[:, 1])[..., None]
        board[index, rows, columns] = BACKGROUND + alpha * (colours[:, None, None] - BACKGROUND)
    image = board.transpose(0, 1, 3, 2, 4, 5).reshape(len(scenes), SIZE, SIZE, 3)
    return np.rint(image * 255).astype(np.uint8)
