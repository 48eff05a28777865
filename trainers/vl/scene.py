"""A simple scene, and the picture of it: coloured shapes of two sizes on a grid, each a little off its cell's middle.

Everything that is said or asked of a picture (`deltaw.trainers.vl.language`) follows from the objects listed here, so
that answers are right because the scene was built that way.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from random import Random

from PIL import Image, ImageDraw

GRID = 4  # cells a side, at most one object in each
PICTURE_SIZE = 64  # pixels a side
COLORS = {
    "red": (214, 44, 40),
    "green": (52, 158, 66),
    "blue": (48, 84, 214),
    "yellow": (232, 200, 40),
    "purple": (150, 62, 186),
    "black": (34, 34, 34),
}
SHAPES = ("circle", "square", "triangle", "cross")
SIZES = {"small": 0.28, "large": 0.45}  # half the width, in cells

_FEWEST, _MOST = 2, 5  # objects in a scene
_JITTER = {"small": 0.18, "large": 0.05}  # in cells: an object stays inside its cell
_TINT = 14  # how far a colour's red, green and blue lie from COLORS
_SMOOTH = 4  # a picture is drawn this much larger and shrunk, which smooths the edges


@dataclass(frozen=True)
class Thing:
    """One object of a scene.

    Arguments:
        color, shape, size: Names of ``COLORS``, ``SHAPES`` and ``SIZES``.
        row, column: Its cell, from 0 at the top and on the left.
        x, y: Its middle, in cells from the picture's upper left corner.
        rgb: The colour it is drawn in.
    """

    color: str
    shape: str
    size: str
    row: int
    column: int
    x: float
    y: float
    rgb: tuple[int, int, int]


@dataclass(frozen=True)
class Scene:
    """Objects in reading order, row by row, and how bright the ground is behind them."""

    things: tuple[Thing, ...]
    ground: int

    def content(self) -> frozenset[tuple[str, str, str, int, int]]:
        """Return what is in which cell; two scenes with the same content differ in a few pixels alone."""
        return frozenset((t.color, t.shape, t.size, t.row, t.column) for t in self.things)


def make_scene(random: Random) -> Scene:
    """Draw a scene: two to five objects in different cells.

    They take their colours and shapes from two or three each, so that some are alike and there is something to count
    and to compare; at least two are the only ones of their colour and shape, so that there is something to point at.

    Example:
        >>> scene = make_scene(Random(1))
        >>> len(scene.things), scene.things[0].shape in SHAPES
        (5, True)
    """
    while True:
        scene = _any_scene(random)
        names = Counter((thing.color, thing.shape) for thing in scene.things)
        if list(names.values()).count(1) >= 2:
            return scene


def _any_scene(random: Random) -> Scene:
    colors = random.sample(list(COLORS), random.choice((2, 3)))
    shapes = random.sample(SHAPES, random.choice((2, 3)))
    cells = sorted(random.sample(range(GRID * GRID), random.randint(_FEWEST, _MOST)))
    things = []
    for cell in cells:
        row, column = divmod(cell, GRID)
        color, shape, size = random.choice(colors), random.choice(shapes), random.choice(list(SIZES))
        jitter = _JITTER[size]
        x, y = (middle + 0.5 + random.uniform(-jitter, jitter) for middle in (column, row))
        red, green, blue = (min(255, max(0, part + random.randint(-_TINT, _TINT))) for part in COLORS[color])
        things.append(Thing(color, shape, size, row, column, x, y, (red, green, blue)))
    return Scene(tuple(things), random.randint(205, 250))


def draw(scene: Scene, size: int = PICTURE_SIZE) -> Image.Image:
    """Return the RGB picture of a scene, ``size`` pixels a side.

    Example:
        >>> draw(make_scene(Random(1))).size
        (64, 64)
    """
    cell = size * _SMOOTH / GRID
    picture = Image.new("RGB", (size * _SMOOTH, size * _SMOOTH), (scene.ground,) * 3)
    pen = ImageDraw.Draw(picture)
    for thing in scene.things:
        x, y, half = thing.x * cell, thing.y * cell, SIZES[thing.size] * cell
        box = (x - half, y - half, x + half, y + half)
        if thing.shape == "circle":
            pen.ellipse(box, fill=thing.rgb)
        elif thing.shape == "square":
            side = 0.88 * half  # a square of the circle's width would look larger
            pen.rectangle((x - side, y - side, x + side, y + side), fill=thing.rgb)
        elif thing.shape == "triangle":
            pen.polygon([(x, y - half), (x + half, y + half), (x - half, y + half)], fill=thing.rgb)
        else:
            arm = half / 3
            pen.rectangle((x - half, y - arm, x + half, y + arm), fill=thing.rgb)
            pen.rectangle((x - arm, y - half, x + arm, y + half), fill=thing.rgb)
    return picture.resize((size, size), Image.Resampling.BOX)
