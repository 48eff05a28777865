"""Labels beside points: none on another, on a point, or outside the frame, as far as there is room."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from numpy.typing import NDArray

from deltaw.analysis.figures.drawing.style import ink, small, thin

Array = NDArray[np.float64]

_ROOM = 1.0  # points around a label
_DOT = 3.5  # points from the middle of a point to its edge
_RADII = (5.0, 8.0, 12.0, 17.0, 23.0, 30.0, 38.0, 48.0, 60.0, 75.0, 95.0)  # points from a point to its label
_WAYS = 24  # directions
_FAR = 10.0  # from here on a line leads to the point
_ROUNDS = 6
# What is as bad as a label so many points farther away: each square point that it covers of others or has outside of
# the frame, its line through another, and another point nearer than its own.
_COVERS, _OUTSIDE, _CROSSES, _DOUBTFUL = 3.0, 12.0, 60.0, 15.0


def label_points(
    ax: Axes, points: Sequence[tuple[float, float]], texts: Sequence[str], colors: Sequence[str]
) -> list[Annotation]:
    """Write a text beside each point, where nothing is in its way; a line leads to those that are far.

    Each label in turn takes the place around its point that is best given all others, near places first, until none
    moves: the same points always have the same labels.

    Arguments:
        ax: Its limits and its place in the figure must be final.
        points: In data.
        texts, colors: Of the points.

    Returns:
        The labels, in the order of the points.
    """
    figure = cast("Figure", ax.figure if isinstance(ax.figure, Figure) else ax.figure.get_figure())
    canvas: Any = figure.canvas if hasattr(figure.canvas, "get_renderer") else FigureCanvasAgg(figure)
    renderer, unit = canvas.get_renderer(), figure.dpi / 72
    middles = ax.transData.transform(np.asarray(points, dtype=float).reshape(-1, 2)) / unit
    frame = np.array(ax.get_window_extent(renderer).extents) / unit
    labels = [
        ax.annotate(
            text,
            point,
            xytext=(0, 0),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=small(),
            color=ink(),
            zorder=4,
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": thin(0.5), "shrinkA": 0, "shrinkB": 2},
        )
        for text, point, color in zip(texts, points, colors, strict=True)
    ]
    extents = [label.get_window_extent(renderer) for label in labels]
    sizes = np.array([(box.width, box.height) for box in extents]).reshape(-1, 2) / unit + 2 * _ROOM
    for label, place in zip(labels, _places(middles, sizes, frame), strict=True):
        label.set_position((float(place[0]), float(place[1])))
        if label.arrow_patch is not None:
            label.arrow_patch.set_visible(bool(place[2]))
    return labels


def _places(middles: Array, sizes: Array, frame: Array) -> Array:
    """Return where each label goes, in points to the right and up, and whether a line leads to its point, (labels, 3).

    Arguments:
        middles: Of the points, (labels, 2).
        sizes: Width and height of the labels, (labels, 2).
        frame: Left, low, right, high.
    """
    count = len(middles)
    turns = 2 * np.pi * np.arange(_WAYS) / _WAYS
    ways = np.stack([np.cos(turns), np.sin(turns)], axis=1).round(9)  # (ways, 2)
    radius = np.repeat(_RADII, _WAYS)  # (places,)
    direction = np.tile(ways, (len(_RADII), 1))
    offsets = [direction * radius[:, None] + np.sign(direction) * size / 2 for size in sizes]  # (places, 2) each
    boxes = [_boxes(middle + offset, size) for middle, offset, size in zip(middles, offsets, sizes, strict=True)]
    dots = _boxes(middles, np.full(2, 2 * _DOT))
    # A label that is nearer to another point than to its own.
    doubtful = [
        _away(mine, np.delete(middles, index, axis=0)).min(axis=1, initial=np.inf)
        < _away(mine, middles[index : index + 1])[:, 0]
        for index, mine in enumerate(boxes)
    ]
    chosen = np.zeros(count, dtype=int)
    placed: list[int] = []
    apart = np.hypot(*(middles[:, None] - middles[None]).transpose(2, 0, 1))
    order = np.lexsort((middles[:, 0], -(apart < 40).sum(axis=1)))  # the crowded ones choose first
    for turn in range(_ROUNDS):
        before = chosen.copy()
        for index in order:
            others = [other for other in placed if other != index]
            taken = np.array([boxes[other][chosen[other]] for other in others]).reshape(-1, 4)
            bars = np.concatenate([taken, np.delete(dots, index, axis=0)])
            mine = boxes[index]
            far = radius >= _FAR
            ends = middles[index] + offsets[index]
            cost = radius + 0.01 * np.arange(len(radius)) / len(radius)
            cost = cost + _COVERS * _shared(mine, bars).sum(axis=1)
            cost = cost + _OUTSIDE * (np.prod(sizes[index]) - _shared(mine, frame[None])[:, 0])
            cost = cost + _CROSSES * far * _crossed(middles[index], ends, bars).sum(axis=1)
            cost = cost + _DOUBTFUL * doubtful[index]
            for other in others:
                if radius[chosen[other]] >= _FAR:  # the other's line over this label
                    end = middles[other] + offsets[other][chosen[other]]
                    cost = cost + _CROSSES * _crossed(middles[other], end[None], mine)[0]
            chosen[index] = int(np.argmin(cost))
            if turn == 0:
                placed.append(int(index))
        if turn and (chosen == before).all():
            break
    found = [(*offsets[index][at], float(radius[at] >= _FAR or doubtful[index][at])) for index, at in enumerate(chosen)]
    return np.array(found).reshape(-1, 3)


def _boxes(middles: Array, size: Array) -> Array:
    return np.concatenate([middles - size / 2, middles + size / 2], axis=1)


def _shared(boxes: Array, others: Array) -> Array:
    """Return the area that each of some boxes shares with each of others, (boxes, others)."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    area: Array = np.clip(high - low, 0, None).prod(axis=2)
    return area


def _away(boxes: Array, points: Array) -> Array:
    """Return how far some points are from some boxes, (boxes, points)."""
    low, high = boxes[:, None, :2] - points[None], points[None] - boxes[:, None, 2:]
    distance: Array = np.hypot(*np.maximum(np.maximum(low, high), 0).transpose(2, 0, 1))
    return distance


def _crossed(start: Array, ends: Array, boxes: Array) -> NDArray[np.bool_]:
    """Return whether the lines from a start to some ends go through some boxes, (ends, boxes)."""
    step = ends - start
    step = np.where(step == 0, 1e-9, step)[:, None, :]  # (ends, 1, 2)
    one, two = (boxes[None, :, :2] - start) / step, (boxes[None, :, 2:] - start) / step
    enter, leave = np.minimum(one, two).max(axis=2), np.maximum(one, two).min(axis=2)
    through: NDArray[np.bool_] = (enter <= leave) & (leave >= 0) & (enter <= 1)
    return through
