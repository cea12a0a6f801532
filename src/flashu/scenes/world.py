"""Worlds of coloured shapes on a plain background: what can be in a picture, how it is placed, how it is drawn.

A picture is a grid of cells of 16 pixels, an image token each. A cell's name is its row's digit and its column's letter
("2c"). Objects are as large as a cell and may lie across several; see `named`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

Kind = tuple[str, str]  # (colour, shape)
Point = tuple[float, float]  # (x, y) in pixels

CELL = 16  # pixels
ROWS = "12345678"  # top to bottom
COLUMNS = "abcdefgh"  # left to right
NUMBERS = ("zero", "one", "two", "three", "four", "five")
RELATIONS = ("left of", "right of", "above", "below")
MARGIN = CELL / 2  # pixels by which a relation must hold

BACKGROUND = np.array([232, 232, 228], np.float32) / 255
PALETTE = {
    "red": (214, 40, 40),
    "green": (38, 150, 60),
    "blue": (36, 84, 214),
    "yellow": (244, 186, 24),
    "purple": (138, 56, 190),
    "cyan": (40, 186, 214),
    "black": (28, 28, 32),
}


def _triangle(x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    return np.maximum(y - 0.86 * r, (2 * np.abs(x) - y - r) * (1 / np.sqrt(5, dtype=np.float32)))


def _cross(x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    ax, ay, arm = np.abs(x), np.abs(y), 0.34 * r
    return np.minimum(np.maximum(ax - arm, ay - r), np.maximum(ay - arm, ax - r))


OUTLINES: dict[str, Callable[[np.ndarray, np.ndarray, float], np.ndarray]] = {
    "circle": lambda x, y, r: np.sqrt(x * x + y * y) - r,
    "square": lambda x, y, r: np.maximum(np.abs(x), np.abs(y)) - 0.86 * r,
    "triangle": _triangle,
    "cross": _cross,
    "diamond": lambda x, y, r: (np.abs(x) + np.abs(y) - r) * np.sqrt(0.5, dtype=np.float32),
    "ring": lambda x, y, r: np.abs(np.sqrt(x * x + y * y) - 0.76 * r) - 0.24 * r,
}
"""Signed distance of (x, y) from a shape of a radius, in pixels, negative inside."""


@dataclass(frozen=True)
class World:
    """What can be in a picture. ``side`` cells each way; up to ``most`` objects of ``radius`` pixels.

    Centres lie on a grid of ``pitch`` pixels that begins in the middle of the first cell, off by up to ``jitter``
    pixels, and ``apart`` or more from each other along one axis. ``doubt``: pixels around the margin within which a
    relation is neither stated nor denied.
    """

    name: str
    side: int
    shapes: tuple[str, ...]
    colours: tuple[str, ...]
    most: int
    radius: float
    jitter: float
    pitch: int = CELL
    apart: int = CELL
    doubt: float = 0.0

    @property
    def size(self) -> int:
        """Pixels each way."""
        return self.side * CELL

    @property
    def tokens(self) -> int:
        """Image tokens."""
        return self.side**2

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return tuple((colour, shape) for colour in self.colours for shape in self.shapes)

    @property
    def counts(self) -> tuple[int, ...]:
        """Numbers of equal objects that captions count."""
        return tuple(range(2, self.most + 1))

    @property
    def numbers(self) -> tuple[str, ...]:
        """Words for 0 to ``most``."""
        return NUMBERS[: self.most + 1]

    @property
    def palette(self) -> np.ndarray:
        """float32 [colours, 3] in 0..1."""
        return np.array([PALETTE[c] for c in self.colours], np.float32) / 255

    @property
    def places(self) -> int:
        """Places each way."""
        return (self.size - CELL) // self.pitch + 1


SCENES = World(
    "scenes",
    side=4,
    shapes=("circle", "square", "triangle", "cross"),
    colours=("red", "green", "blue", "yellow", "purple"),
    most=4,
    radius=6.0,
    jitter=0.8,
)
HARD = World(
    "scenes-hard",
    side=8,
    shapes=tuple(OUTLINES),
    colours=tuple(PALETTE),
    most=5,
    radius=7.0,
    jitter=0.5,
    pitch=CELL // 2,
    apart=CELL * 3 // 2,
    doubt=4.0,
)
WORLDS = {world.name: world for world in (SCENES, HARD)}


def world_of(height: int, width: int) -> World | None:
    """The world whose pictures have this size in pixels."""
    return next((world for world in WORLDS.values() if world.size == height == width), None)


@dataclass(frozen=True, slots=True, order=True)
class Object:
    """One shape. Ordered by cell, in reading order; `dx`, `dy` are pixels from the cell's middle."""

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
        """Name of the cell ("2c")."""
        return ROWS[self.row] + COLUMNS[self.column]

    @property
    def centre(self) -> Point:
        half = CELL / 2
        return (self.column * CELL + half + self.dx, self.row * CELL + half + self.dy)


@dataclass(frozen=True, slots=True)
class Scene:
    """Objects in reading order."""

    objects: tuple[Object, ...]
    world: World = SCENES

    def matching(self, shape: str | None = None, colour: str | None = None) -> tuple[Object, ...]:
        """The objects of this shape and colour, in reading order; None matches anything."""
        return tuple(o for o in self.objects if shape in (None, o.shape) and colour in (None, o.colour))


def holds(relation: str, a: Point, b: Point, margin: float) -> bool:
    """Whether point a stands in the relation to point b, by more than the margin on that axis."""
    dx, dy = b[0] - a[0], b[1] - a[1]
    return {"left of": dx, "right of": -dx, "above": dy, "below": -dy}[relation] > margin


def named(centre: Point) -> tuple[int, int]:
    """(row, column) of the cell that the upper left quarter of an object there lies in."""
    column, row = (int((c - CELL / 4) // CELL) for c in centre)
    return row, column


def place(kinds: Sequence[Kind], rng: np.random.Generator, aligned: bool = False, world: World = SCENES) -> Scene:
    """Puts the kinds on random places of their own; `aligned` keeps them all in one row or one column."""
    n, places = len(kinds), world.places
    while True:
        if aligned:
            line, spots = int(rng.integers(places)), rng.permutation(places)[:n]
            across = rng.random() < 0.5
            taken = [(line, int(s)) if across else (int(s), line) for s in spots]
        else:
            taken = [divmod(int(c), places) for c in rng.permutation(places * places)[:n]]
        if all(max(abs(a - c), abs(b - d)) * world.pitch >= world.apart for (a, b), (c, d) in combinations(taken, 2)):
            break
    jitter = rng.uniform(-world.jitter, world.jitter, (n, 2))
    objects = []
    for (colour, shape), (y, x), (dx, dy) in zip(kinds, taken, jitter, strict=True):
        row, column = named((x * world.pitch + CELL / 2, y * world.pitch + CELL / 2))
        off_x, off_y = x * world.pitch - column * CELL, y * world.pitch - row * CELL
        objects.append(Object(row, column, shape, colour, off_x + float(dx), off_y + float(dy)))
    return Scene(tuple(sorted(objects)), world)


def coverage(world: World, shape: np.ndarray, dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """Antialiased masks of shapes [n] (indices into the world's) displaced by dx, dy [n] px -> [n, CELL, CELL]."""
    axis = np.arange(CELL, dtype=np.float32) - (CELL - 1) / 2
    x = axis[None, None, :] - dx[:, None, None].astype(np.float32)
    y = axis[None, :, None] - dy[:, None, None].astype(np.float32)
    distance = np.stack(np.broadcast_arrays(*(OUTLINES[name](x, y, world.radius) for name in world.shapes)))
    return np.clip(0.5 - distance[shape, np.arange(len(shape))], 0, 1)


def render(scenes: Iterable[Scene]) -> np.ndarray:
    """Scenes of one world -> uint8 images [n, size, size, 3]."""
    scenes = list(scenes)
    world = scenes[0].world if scenes else SCENES
    image = np.broadcast_to(BACKGROUND, (len(scenes), world.size, world.size, 3)).copy()
    items = [(i, o) for i, scene in enumerate(scenes) for o in scene.objects]
    if items:
        index = np.array([i for i, _ in items])[:, None, None]
        shapes = np.array([world.shapes.index(o.shape) for _, o in items])
        colours = world.palette[[world.colours.index(o.colour) for _, o in items]]
        centres = np.array([o.centre for _, o in items])
        corners = np.rint((centres - CELL / 2) / world.pitch).astype(int) * world.pitch
        off = centres - corners - CELL / 2
        alpha = coverage(world, shapes, off[:, 0], off[:, 1])[..., None]
        x, y = (corners[:, axis, None] + np.arange(CELL) for axis in (0, 1))
        image[index, y[:, :, None], x[:, None, :]] = BACKGROUND + alpha * (colours[:, None, None] - BACKGROUND)
    return np.rint(image * 255).astype(np.uint8)
