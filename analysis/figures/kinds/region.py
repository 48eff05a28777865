"""SBoRA's Figure 2: which part of a weight matrix fine-tuning moves."""

from collections.abc import Mapping
from math import ceil
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter
from numpy.typing import ArrayLike, NDArray

from deltaw.adapters.errors import OptionError
from deltaw.analysis.figures.drawing.axes import Fitting, letter
from deltaw.analysis.figures.drawing.canvas import Canvas, Target, most_across
from deltaw.analysis.figures.drawing.facts import Facts, plain
from deltaw.analysis.figures.drawing.style import PAPER_WIDTH

POINTS = 256  # more than this many rows or columns are drawn in blocks: a point is above a pixel in a saved file
UNTOUCHED = "0.78"  # no colour of the map, whose middle is white

Array = NDArray[np.float64]


def region(
    updates: Mapping[str, ArrayLike],
    *,
    module: str | None = None,
    step: int | None = None,
    width: float | None = None,
    ax: Target | None = None,
) -> Target:
    """Draw the update ΔW of one matrix for several methods side by side.

    Red is above 0, blue below, white is near 0, and grey a row or column of ΔW that is exactly zero: those weights are
    what they were. Every panel has a scale of its own, up to the 99th percentile of |ΔW| ≠ 0, so that a method that
    moves little shows its pattern too. In a matrix of more than 256 rows or columns a point is a block of entries, of
    which it shows the largest by |ΔW|.

    Arguments:
        updates: ΔW (out, in) by the panel's title, in the order of the panels. `deltaw.analysis.figure_tables.updates`
            makes them, and then module and step need not be named.
        module: The matrix' name, which stands beneath the picture.
        step: The step, which stands there too.
        width: Of a new figure, in inches; ``None`` for up to 7, or more with larger letters. More than four panels go
            into further rows.
        ax: Where to draw: an Axes for a single matrix, a SubFigure or a Figure; ``None`` for a new Figure.

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
    blocks = ceil(len(matrices) / most_across(4, ax, width, 1.5))
    across = ceil(len(matrices) / blocks)
    wide = min(PAPER_WIDTH, 0.5 + 1.65 * across)
    tall = (wide / across - 0.36) * max(_aspect(matrix) for matrix in matrices.values())  # about as panels come out
    touched = all(max(untouched(matrix)) == 0 for matrix in matrices.values())
    size = (wide, 0.2 + blocks * (1.3 + tall) - (0.0 if touched else 0.1))
    canvas = Canvas(ax, width, size, panels=len(matrices), choose="choose one matrix")
    for index, ((name, matrix), panel) in enumerate(zip(matrices.items(), canvas.grid(across), strict=True)):
        _draw(panel, matrix)
        rows, columns = untouched(matrix)
        canvas.title(
            panel, f"{plain(name)}\nuntouched rows {_percent(rows)},\ncolumns {_percent(columns)}", letter(index)
        )
        panel.set_xlabel("column (input)")
        if index % across == 0:
            panel.set_ylabel("row (output)")
    if not touched:
        patch = Patch(color=UNTOUCHED, label="row or column of ΔW that is exactly zero")
        canvas.legend([[(patch, str(patch.get_label()))]])
    return canvas.finish(_facts(updates, module, step))


def _facts(updates: Mapping[str, ArrayLike], module: str | None, step: int | None) -> Facts:
    """Return which matrix at which step: what the updates themselves know, else what the caller says."""
    names = list(dict.fromkeys(getattr(updates, "modules", ()))) or [name for name in (module,) if name is not None]
    steps = sorted(set(getattr(updates, "steps", ()))) or [at for at in (step,) if at is not None]
    apart = getattr(updates, "spacing", "")
    at = f"at step {steps[0]:,}" if len(steps) == 1 else f"at steps {steps[0]:,} to {steps[-1]:,}" if steps else ""
    return Facts(
        "Where the update ΔW of a matrix is not zero",
        kind=f"matrix {' and '.join(plain(name) for name in names)}" if names else "",
        steps=", ".join(part for part in (at, f"checkpoints {apart}" if apart else "") if part),
        notes=("each panel has a scale of its own, up to the 99th percentile of |ΔW|",) if len(updates) > 1 else (),
    )


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


def _draw(ax: Axes, matrix: Array) -> None:
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
        axis.set_major_locator(Fitting(4, integer=True, min_n_ticks=2, steps=[1, 2, 4, 5, 8, 10]))
    ax.grid(False)
    bar = ax.figure.colorbar(
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
