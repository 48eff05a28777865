"""SBoRA's Figure 2: which part of a weight matrix fine-tuning moves."""

from collections.abc import Mapping
from math import ceil
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import ArrayLike, NDArray

from deltaw.adapters.errors import OptionError
from deltaw.analysis.figures.drawing.axes import letter
from deltaw.analysis.figures.drawing.style import PAPER_WIDTH, inches, paper_style

POINTS = 256  # more than this many rows or columns are drawn in blocks: a point is above a pixel in a saved file
UNTOUCHED = "0.78"  # no colour of the map, whose middle is white

Array = NDArray[np.float64]


def region(updates: Mapping[str, ArrayLike], *, width: float | None = None) -> Figure:
    """Draw the update ΔW of one matrix for several methods side by side.

    Red is above 0, blue below, white is near 0, and grey a row or column of ΔW that is exactly zero: those weights are
    what they were. Every panel has a scale of its own, up to the 99th percentile of |ΔW| ≠ 0, so that a method that
    moves little shows its pattern too. In a matrix of more than 256 rows or columns a point is a block of entries, of
    which it shows the largest by |ΔW|.

    Arguments:
        updates: ΔW (out, in) by the panel's title, in the order of the panels.
        width: In inches; ``None`` for up to 7, a paper's width. More than four panels go into further rows.

    Returns:
        The figure; nothing is shown or written. The title of a panel says how many rows and columns are untouched.

    Raises:
        OptionError: There is no update, or one is no matrix, is empty, or holds NaN or infinity.

    Source:
        SBoRA, section 3.2, Figure 2 and equations 8 to 12.

    Example:
        >>> update = np.zeros((4, 4))
        >>> update[:, [0, 3]] = 0.1
        >>> print(region({"SBoRA-FA": update}).axes[0].get_title("left"))
        (a) SBoRA-FA
        untouched rows 0 %,
        columns 50 %
    """
    if not isinstance(updates, Mapping):
        raise OptionError(f"updates is {type(updates).__name__}; pass matrices by their titles, as {{'LoRA': ΔW}}")
    if not updates:
        raise OptionError("there is no update to draw; give one or more matrices by their titles")
    matrices = {name: _matrix(name, update) for name, update in updates.items()}
    blocks = ceil(len(matrices) / 4)
    across = ceil(len(matrices) / blocks)
    with paper_style():
        wide = inches(width, min(PAPER_WIDTH, 0.5 + 1.65 * across))
        panel = wide / across - 0.36  # about as wide as a panel comes out
        tallest = max(_aspect(matrix) for matrix in matrices.values())
        size = (wide, 0.3 + blocks * (1.3 + panel * tallest))
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(blocks, across, squeeze=False)
        for index, (name, matrix) in enumerate(matrices.items()):
            ax = panels.flat[index]
            _draw(figure, ax, matrix)
            rows, columns = untouched(matrix)
            ax.set_title(
                f"({letter(index)}) {name}\nuntouched rows {_percent(rows)},\ncolumns {_percent(columns)}",
                loc="left",
            )
            ax.set_xlabel("column (input)")
            if index % across == 0:
                ax.set_ylabel("row (output)")
        for ax in panels.flat[len(matrices) :]:
            ax.remove()
        if any(max(untouched(matrix)) > 0 for matrix in matrices.values()):
            patch = Patch(color=UNTOUCHED, label="row or column of ΔW that is exactly zero")
            figure.legend(handles=[patch], loc="outside lower center")
    return figure


def untouched(update: ArrayLike) -> tuple[float, float]:
    """Return the shares of rows and of columns of an update that are exactly zero.

    Example:
        >>> untouched([[1.0, 0.0], [2.0, 0.0]])
        (0.0, 0.5)
    """
    zero = np.asarray(update) == 0
    return float(zero.all(axis=1).mean()), float(zero.all(axis=0).mean())


def _matrix(name: str, update: ArrayLike) -> Array:
    matrix = np.asarray(update, dtype=np.float64)
    if matrix.ndim != 2 or matrix.size == 0:
        raise OptionError(f"{name}: the update has shape {matrix.shape}; give a matrix ΔW (out, in)")
    if not np.isfinite(matrix).all():
        raise OptionError(f"{name}: the update holds NaN or infinity")
    return matrix


def _draw(figure: Figure, ax: Axes, matrix: Array) -> None:
    zero = matrix == 0
    still = zero.all(axis=1)[:, None] | zero.all(axis=0)[None, :]  # (out, in)
    shown = np.ma.masked_array(_reduced(matrix), _reduced(~still) == 0)
    moved = np.abs(matrix[~zero])
    limit = float(np.percentile(moved, 99)) if moved.size else 1.0
    colors = colormaps["RdBu_r"].with_extremes(bad=UNTOUCHED)
    out_features, in_features = matrix.shape
    image = ax.imshow(
        shown,
        cmap=colors,
        vmin=-limit,
        vmax=limit,
        interpolation="nearest",
        aspect=_aspect(matrix) * in_features / out_features,
        extent=(-0.5, in_features - 0.5, out_features - 0.5, -0.5),
    )
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=4, integer=True, steps=[1, 2, 4, 5, 8, 10]))
    bar = figure.colorbar(
        image,
        ax=ax,
        orientation="horizontal",
        extend="both" if moved.size and moved.max() > limit else "neither",
        aspect=16,
        pad=0.04,
    )
    bar.set_ticks([-limit, 0.0, limit])
    bar.ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2g}".replace("-", "−")))
    bar.set_label("ΔW")


def _aspect(matrix: Array) -> float:
    """Return a panel's height over its width: that of the matrix, within reason."""
    ratio: float = matrix.shape[0] / matrix.shape[1]
    return min(max(ratio, 0.5), 2.0)


def _reduced(values: NDArray[Any]) -> Array:
    """Return for every block of rows and columns its entry of largest size; the values where they are few."""
    found = np.asarray(values, dtype=np.float64)
    for axis in (0, 1):
        if found.shape[axis] > POINTS:
            starts = np.linspace(0, found.shape[axis], POINTS, endpoint=False).astype(int)
            high = np.maximum.reduceat(found, starts, axis=axis)
            low = np.minimum.reduceat(found, starts, axis=axis)
            found = np.where(high >= -low, high, low)
    return found


def _percent(share: float) -> str:
    """Not rounded to all or none of what is neither.

    Example:
        >>> _percent(0.0), _percent(0.9375), _percent(0.99999)
        ('0 %', '93.8 %', '> 99.9 %')
    """
    text = f"{100 * share:.3g}"
    if 0 < share < 0.001:
        return "< 0.1 %"
    return "> 99.9 %" if text == "100" and share < 1 else f"{text} %"
