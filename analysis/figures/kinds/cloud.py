"""DoRA's Figures 2 and 7: does a matrix that turns more also change more in magnitude?"""

from collections.abc import Sequence, Set
from typing import Any, get_args

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch
from matplotlib.transforms import Affine2D

from deltaw.adapters.errors import OptionError
from deltaw.analysis.figures.drawing.axes import (
    grid_of_panels,
    letter,
    number_axis,
    padded,
    row_legend,
    signed,
    width_of,
)
from deltaw.analysis.figures.drawing.layer_positions import layer_entries, position_colors, positions_of, with_positions
from deltaw.analysis.figures.drawing.rows import finite
from deltaw.analysis.figures.drawing.style import check_choice, inches, paper_style
from deltaw.analysis.measures.change import Axis
from deltaw.analysis.measures.correlation import correlation
from deltaw.analysis.tables.tidy import display_name, require_columns, require_one_start, select
from deltaw.analysis.tables.walk import spread_out

SOURCE = 'Trajectory.changes("base")'
COLUMNS = ("run", "method", "module", "layer", "kind", "axis", "step_from", "step_to", "delta_m", "delta_d")
FEWEST_MATRICES = 3  # fewer say nothing of how the line would be with others
RESAMPLES = 300
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")  # more steps than these are told apart by size


def cloud(
    frame: pd.DataFrame,
    *,
    kind: str | None = "query",
    axis: Axis = "column",
    methods: Sequence[str] | None = None,
    steps: int | Sequence[int] | None = 4,
    width: float | None = None,
) -> Figure:
    """Draw ΔM against ΔD, a panel per method, a point per matrix and step, with the regression line and Pearson's r.

    The colour is the layer, the marker the step. Where a model has an encoder and a decoder, each has colours of its
    own, and so has the decoder's attention to the encoder. Every panel has its own scales, as in the paper. Points of
    several runs of a method lie in one panel. Pearson's r and the line are those of the points that are shown.
    The band holds 95 % of the lines that come out when matrices, and steps of each, are drawn anew; fewer than three
    matrices have none.

    Arguments:
        frame: The changes from the base (or from the first step) of one or several runs, concatenated, columns as in
            `Trajectory.changes`.
        kind: The kind of matrix, "query" (Figure 2) or "value" (Figure 7); ``None`` for all kinds together.
        axis: "column" for the paper's equations 3 and 4, "row" for what its authors' code normalises.
        methods: The methods to draw, in this order; ``None`` for all, in the order of ``METHODS``.
        steps: How many steps, evenly spread with the last among them, 4 as in the paper; or the steps themselves; or
            ``None`` for all. Step 0, where nothing has moved, is left out unless it is named.
        width: In inches; ``None`` for up to 7, a paper's width. More than three methods go into further rows.

    Returns:
        The figure; nothing is shown or written.

    Raises:
        OptionError: There is no such kind, method, axis or step, no matrix has a layer number, or the table is of
            another form.

    Source:
        DoRA, section 3.2, equations 3 and 4, Figures 2 and 7.

    Example:
        >>> columns = ["run", "method", "module", "layer", "kind", "axis", "step_from", "step_to", "delta_m", "delta_d"]
        >>> rows = [
        ...     ("a", "lora", f"{layer}.query", layer, "query", "column", pd.NA, step, 0.1 * step, 0.01 * step + layer)
        ...     for layer in range(3)
        ...     for step in (10, 20)
        ... ]
        >>> cloud(pd.DataFrame(rows, columns=columns)).axes[0].get_title("left")
        '(a) LoRA'
    """
    check_choice("axis", axis, get_args(Axis))
    require_columns(frame, COLUMNS, SOURCE)
    require_one_start(frame, SOURCE)
    rows, chosen = select(frame, kind, methods)
    rows, notes = clean(rows, axis)
    rows = _shown(rows, steps)
    positions = positions_of(rows)
    colors = position_colors(positions)
    looks = _markers(int(rows["turn"].max()) + 1)
    banded = False
    with paper_style():
        blocks, across = grid_of_panels(len(chosen))
        legend = [*layer_entries(positions, colors), *_step_entries(rows, looks)]
        height = 0.5 + 0.17 * len(legend) + 0.14 * len(notes) + 1.95 * blocks
        figure = Figure(figsize=(inches(width, width_of(across)), height), layout="constrained")
        for index, method in enumerate(chosen):
            ax = figure.add_subplot(blocks, across, index + 1)
            found = rows[rows["method"] == method]
            for turn, (marker, size) in enumerate(looks):
                points = found[found["turn"] == turn]
                shades = [colors[position] for position in zip(points["stack"], points["layer"], strict=True)]
                ax.scatter(points["delta_d"], points["delta_m"], s=size, c=shades, marker=marker, **EDGE, zorder=3)
            number_axis(ax, "x", padded(found["delta_d"].min(), found["delta_d"].max()), "ΔD")
            number_axis(ax, "y", padded(found["delta_m"].min(), found["delta_m"].max()), "ΔM")
            banded |= _regression(ax, found)
            ax.set_title(f"({letter(index)}) {display_name(method)}", loc="left")
        row_legend(figure, legend)
        notes = [*(["band: 95 % of lines, bootstrapped over the matrices"] if banded else []), *notes]
        figure.supxlabel("\n".join([start_note(rows, axis), *_counted(rows), *notes]))
    return figure


EDGE: dict[str, Any] = {"linewidths": 0.3, "edgecolors": "white"}


def clean(rows: pd.DataFrame, axis: Axis) -> tuple[pd.DataFrame, list[str]]:
    """Return the finite points along an axis with their positions in the model, and what was left out."""
    along = rows[rows["axis"] == axis]
    if along.empty:
        raise OptionError(f"the table has no rows of axis {axis!r}; make it with axes=({axis!r},)")
    along, unnumbered = with_positions(along)
    along, undefined = finite(along, ("delta_m", "delta_d"))
    return along, [*unnumbered, *undefined]


def start_note(rows: pd.DataFrame, axis: Axis) -> str:
    """Say what the changes are from and along which axis."""
    start = rows["step_from"].dropna()
    return f"changes since {'the base weights' if start.empty else f'step {int(start.iloc[0])}'}, {axis} by {axis}"


def _shown(rows: pd.DataFrame, steps: int | Sequence[int] | None) -> pd.DataFrame:
    """Keep the wanted steps of every run and number them in the column ``turn``; the last is the last of all."""
    turns: dict[tuple[str, str, int], int] = {}
    for (run, method), found in rows.groupby(["run", "method"])["step_to"]:
        there = sorted(int(step) for step in found.unique())
        turns |= {(str(run), str(method), step): turn for turn, step in enumerate(_wanted(there, steps))}
    keys = list(zip(rows["run"].astype(str), rows["method"], rows["step_to"], strict=True))
    kept = [key in turns for key in keys]
    if not any(kept):
        there = sorted(int(step) for step in rows["step_to"].unique())
        raise OptionError(f"no run has a step of {steps}; there are {', '.join(map(str, spread_out(there, 8)))}")
    return rows[kept].assign(turn=[turns[key] for key in keys if key in turns])


def _wanted(there: list[int], steps: int | Sequence[int] | None) -> list[int]:
    moved = [step for step in there if step > 0] or there
    if steps is None:
        return moved
    if isinstance(steps, Sequence | Set):
        return [step for step in there if step in set(steps)]
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise OptionError(f"steps is {steps!r}; choose 1 or more, a list of steps, or None for all")
    marks = [moved[-1] * turn / steps for turn in range(1, steps + 1)]
    return sorted({min(moved, key=lambda step: abs(step - mark)) for mark in marks})


def _markers(count: int) -> list[tuple[str, float]]:
    """Return marker and size of each step; many steps are circles that grow."""
    if count <= len(MARKERS):
        return [(marker, 18.0) for marker in MARKERS[:count]]
    return [("o", float(size)) for size in np.linspace(3, 26, count)]


def _step_entries(rows: pd.DataFrame, looks: list[tuple[str, float]]) -> list[list[tuple[Artist, str]]]:
    """Return the legend's row of the steps: their numbers where all runs have the same, else the paper's words."""
    steps = [sorted(int(step) for step in found.unique()) for _, found in rows.groupby("turn")["step_to"]]
    if all(len(found) == 1 for found in steps):
        names = [str(found[0]) for found in steps]
    else:
        names = [*(f"{turn + 1}." for turn in range(len(steps) - 1)), "last"]
    entries: list[tuple[Artist, str]] = [(Line2D([], [], linestyle=""), "step")]
    for turn in spread_out(range(len(looks)), len(MARKERS)):
        marker, size = looks[turn]
        entries.append((Line2D([], [], linestyle="", marker=marker, color="0.35", markersize=size**0.5), names[turn]))
    return [entries]


def _regression(ax: Axes, points: pd.DataFrame) -> bool:
    """Draw the line through the points over the panel, and write r above it; return whether there is a band."""
    (row,) = correlation(points, by=[]).to_dict("records")
    ax.set_title(f"r = {signed(row['pearson'])}", loc="right")
    if not np.isfinite(row["slope"]):
        return False
    ends = np.array([points["delta_d"].min(), points["delta_d"].max()])
    ax.plot(ends, row["intercept"] + row["slope"] * ends, "--", color="0.2", linewidth=0.9, zorder=2)
    # The steps of a matrix are no independent points, so they are drawn together.
    matrices = points["run"].astype(str) + " " + points["module"].astype(str)
    if matrices.nunique() < FEWEST_MATRICES:
        return False
    # Seaborn's least squares lose a slope where ΔD is far below 1, so it sees both as shares of their largest.
    sizes = points["delta_d"].abs().max(), points["delta_m"].abs().max()
    shares = {"x": points["delta_d"] / sizes[0], "y": points["delta_m"] / sizes[1]}
    aside = Figure().add_subplot()
    sns.regplot(**shares, units=matrices, n_boot=RESAMPLES, seed=0, scatter=False, ax=aside)
    band = aside.collections[0].get_paths()[0].transformed(Affine2D().scale(*sizes))
    ax.add_patch(PathPatch(band, color="0.2", alpha=0.1, linewidth=0, zorder=1))
    return True


def _counted(rows: pd.DataFrame) -> list[str]:
    """Say how many points r is of, and of how many runs."""
    counts = rows.groupby("method").size()
    low, high = counts.min(), counts.max()
    runs = rows.groupby("method")["run"].nunique().max()
    text = f"r: Pearson's, of {low if low == high else f'{low} to {high}'} points per panel"
    return [text if runs == 1 else f"{text}, from up to {runs} runs"]
